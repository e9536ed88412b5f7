"""What `tfanet-eval` prints and writes about an evaluation: tables, intervals, breakdown, gate, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet.console import say, working
from tfanet.errors import UserError
from tfanet.files import require_writable, write_json
from tfanet_eval import tables
from tfanet_eval.analysis import breakdown
from tfanet_eval.evaluation import Evaluation, combine
from tfanet_eval.metrics import METRICS, resample
from tfanet_eval.reference import gate_of, precision_of, report_gates

if TYPE_CHECKING:
    from tfanet_eval.jobs import EvaluationJob
    from tfanet_eval.metrics import Interval

_COLUMNS = ("split", "mIoU", "oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "count")
_LATENCY = ("ms per image", "p95 ms")
_PARITY = ("Δ mIoU", "max logit error", "mask agreement")
_BREAKDOWN = ("group", "mIoU", "mIoU 95 %", "oIoU", "P@0.5", "P@0.7", "P@0.9", "count")


@dataclass(frozen=True)
class Outputs:
    """What to print and write besides the table; None writes nothing."""

    results: Path | None = None
    """The results file, which the evaluation itself writes."""
    breakdown: bool = False
    gate: bool = False
    """Print the parity gate of each split."""
    gate_images: Path = Path("gate")
    """Folder for images of the worst pairs of a closed gate."""
    json: Path | None = None
    sheet: Path | None = None
    """An image of sampled predictions."""
    report: Path | None = None
    """An HTML page."""

    def require_writable(self) -> None:
        """Raise `UserError` unless every file can be written and has a fitting suffix."""
        from tfanet.visualize import require_image_path

        if self.json is not None:
            require_writable(self.json)
        if self.sheet is not None:
            require_image_path(self.sheet)
        if self.report is not None:
            require_page(self.report)


def require_page(path: Path) -> None:
    """Raise `UserError` unless an HTML page can be written to `path`."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path} is not the name of an HTML page; it must end in .html")
    require_writable(path)


def write_outputs(
    job: EvaluationJob, evaluations: Mapping[str, Evaluation], outputs: Outputs, why_no_reference: str = ""
) -> None:
    """Print the table and everything else in `outputs`, write its files, and check parity with the reference.

    `why_no_reference` is printed if the job has no reference. Raises `VerificationError`, at the end, if a
    parity bound is broken.
    """
    _print_table(job, evaluations)
    intervals = _intervals(evaluations)
    for split, bounds in intervals.items():
        texts = [f"{name} {_percent(bounds[name])}" for name in ("mIoU", "oIoU")]
        say(f"{split}, 95 % intervals over images: {', '.join(texts)}")
    if outputs.breakdown:
        _print_breakdown(evaluations)
    say(combine(evaluations.values()).timing.summary())
    _write_files(job, evaluations, outputs, intervals)
    if job.reference is None:
        say(f"parity was not measured: {why_no_reference}")
    else:
        _check_parity(job, evaluations, outputs)
    say(f'next: tfanet-predict IMAGE "TEXT" --engine {job.engine}')


def _print_table(job: EvaluationJob, evaluations: Mapping[str, Evaluation]) -> None:
    sizes = {"480": "masks at 480 x 480", "original": "masks at the images' own size"}
    notes = [sizes.get(job.convention, f"convention {job.convention}") + ", in percent"]
    if job.batch > 1:
        notes.append(f"calls of {job.batch} images")
    if (processes := combine(evaluations.values()).timing.processes) > 1:
        notes.append(f"times with {processes} processes at once")
    if job.shuffled:
        notes.append("expressions SHUFFLED among images")
    rows = [{"split": split} | tables.metric_columns(evaluation) for split, evaluation in evaluations.items()]
    columns = (*_COLUMNS, *_LATENCY, *(_PARITY if job.reference is not None else ()))
    tables.show(rows, columns, f"{job.engine.name} on {job.data_name}: {', '.join(notes)}")


def _intervals(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, Interval]]:
    """The 95 % interval of every metric, by split."""
    resampled = {split: resample(one.records, one.convention) for split, one in evaluations.items()}
    return {split: {name: one.interval(name) for name in METRICS} for split, one in resampled.items()}


def _percent(interval: Interval) -> str:
    return " .. ".join(f"{100 * bound:.2f}" for bound in interval)


def _print_breakdown(evaluations: Mapping[str, Evaluation]) -> None:
    for split, evaluation in evaluations.items():
        rows = breakdown(evaluation.records, evaluation.convention)
        rows = [row | {"mIoU 95 %": _percent(row["interval"])} for row in rows]
        tables.show(rows, _BREAKDOWN, f"groups of {split}")


def _write_files(
    job: EvaluationJob,
    evaluations: Mapping[str, Evaluation],
    outputs: Outputs,
    intervals: Mapping[str, Mapping[str, Interval]],
) -> None:
    if outputs.results is not None:
        say(f"wrote {outputs.results}")
    if outputs.sheet is not None:
        from tfanet_eval.prediction import write_sheet

        write_sheet(job, outputs.sheet, f"{job.engine.name} · {job.data_name} {job.splits[0]}")
        say(f"wrote {outputs.sheet}")
    if outputs.report is not None:
        from tfanet_eval.report.entries import results_of
        from tfanet_eval.report.page import write_report

        with working(f"drawing {outputs.report.name}"):
            results = results_of(job, evaluations)
            engines = {one.run["engine_sha256"]: one.path for one in results}
            write_report(outputs.report, results, engines, trust=job.trust)
        say(f"wrote {outputs.report}")
    if outputs.json is not None:
        write_json(outputs.json, summary(job, evaluations, intervals))
        say(f"wrote {outputs.json}")


def _check_parity(job: EvaluationJob, evaluations: Mapping[str, Evaluation], outputs: Outputs) -> None:
    precision = precision_of(job.engine)
    gates = {split: gate_of(evaluation, precision) for split, evaluation in evaluations.items()}
    if outputs.gate:
        report_gates(job, evaluations, gates, outputs.gate_images)
    for split, gate in gates.items():
        gate.require(f"{job.engine} on {split}")
    say(f"parity with {job.reference}: within the {precision} bounds")


def summary(
    job: EvaluationJob,
    evaluations: Mapping[str, Evaluation],
    intervals: Mapping[str, Mapping[str, Interval]],
) -> dict[str, Any]:
    """The contents of `tfanet-eval --json`."""
    return {
        "engine": str(job.engine),
        "reference": str(job.reference) if job.reference else None,
        "dataset": job.dataset,
        "split_by": job.effective_split_by,
        "convention": job.convention,
        "shuffled_sentences": job.shuffled,
        "processes": combine(evaluations.values()).timing.processes,
        "splits": {
            split: evaluation.to_dict() | {"intervals": intervals[split]}
            for split, evaluation in evaluations.items()
        },
    }
