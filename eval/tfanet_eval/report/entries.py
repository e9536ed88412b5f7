"""The evaluations that a report compares: one entry per engine, all of the same expressions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfanet.errors import UserError
from tfanet_eval.analysis import pair_records
from tfanet_eval.evaluation import Evaluation
from tfanet_eval.jobs import EvaluationJob, environment
from tfanet_eval.metrics import convention_named
from tfanet_eval.results import Record, Results

COLOURS = ("#0a84d6", "#d9730d", "#1f9d55", "#a347ba", "#c8323c", "#7a7f87")
"""One per engine, with similar contrast on white and on near black."""


@dataclass(frozen=True)
class Entry:
    """One engine of a report."""

    name: str
    colour: str
    results: Results
    evaluation: Evaluation
    engine: Path | None
    """The engine's file, to draw its masks; None if it was not given."""

    @property
    def timed(self) -> bool:
        """False for a reference, which is evaluated for accuracy only."""
        return not np.isnan(self.evaluation.latency.median)

    @property
    def ious(self) -> np.ndarray:
        """IoU of every expression, float [n], 0..1."""
        iou = self.evaluation.convention.iou
        return np.array([iou(record.intersection, record.union) for record in self.evaluation.records])

    def of(self, splits: Sequence[str]) -> Evaluation:
        """The evaluation restricted to `splits`."""
        records = tuple(record for record in self.evaluation.records if record.split in splits)
        return Evaluation(records, self.evaluation.convention)


def entries_of(results: Sequence[Results], engines: Mapping[str, Path]) -> list[Entry]:
    """One entry per results file, records in the first file's order.

    `engines` maps `model_sha256` to the engine's file. Raises `UserError` if the results are not of the same
    expressions or an engine belongs to none of them.
    """
    results = _in_same_order(results)
    known = {result.run["engine_sha256"] for result in results}
    for digest, file in engines.items():
        if digest not in known:
            raise UserError(f"no results belong to {file}: it is not one of the evaluated engines")
    names = [result.run["engine"] for result in results]
    entries = []
    for number, (name, result) in enumerate(zip(names, results, strict=True)):
        unique = name if names.count(name) == 1 else f"{name} ({result.path.name})"
        evaluation = Evaluation(result.records, convention_named(result.run["convention"]))
        colour, engine = COLOURS[number % len(COLOURS)], engines.get(result.run["engine_sha256"])
        entries.append(Entry(unique, colour, result, evaluation, engine))
    return entries


def _in_same_order(results: Sequence[Results]) -> list[Results]:
    """The results, records in the order of the first; `UserError` unless all have the same expressions."""
    if not results:
        raise UserError("a report needs at least one results file")
    first, ordered = results[0], []
    for other in results:
        pairing = pair_records(first, other)
        if pairing.only_first or pairing.only_second:
            raise UserError(f"{other.path} and {first.path} are not of the same expressions")
        ordered.append(dataclasses.replace(other, records=tuple(record for _, record in pairing.pairs)))
    return ordered


def results_of(job: EvaluationJob, evaluations: Mapping[str, Evaluation]) -> list[Results]:
    """The evaluations that `run_job` returned, as input of a report; a reference comes first."""
    run = job.description
    where = environment(max(evaluation.timing.processes for evaluation in evaluations.values()))
    records = tuple(record for evaluation in evaluations.values() for record in evaluation.records)
    results = [Results(job.engine, run, where, records)]
    if job.reference is not None:
        reference_run = run | {
            "engine": run["reference"], "engine_sha256": run["reference_sha256"], "precision": "fp32",
            "reference": None, "reference_sha256": None,
        }  # fmt: skip
        reference_records = tuple(_of_reference(record) for record in records)
        results.insert(0, Results(job.reference, reference_run, where, reference_records))
    return results


def _of_reference(record: Record) -> Record:
    """The reference's result for the same expression; its latency was not measured."""
    assert record.reference is not None
    counts = {"intersection": record.reference.intersection, "union": record.reference.union}
    return dataclasses.replace(record, **counts, ms=math.nan, reference=None)
