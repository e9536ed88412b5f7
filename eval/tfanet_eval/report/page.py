"""One self-contained HTML page about one or several evaluations of the same expressions."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tfanet.data.refer import data_name
from tfanet.errors import UserError
from tfanet.files import write_text
from tfanet_eval.analysis import pair_records
from tfanet_eval.evaluation import Evaluation
from tfanet_eval.jobs import EvaluationJob, environment
from tfanet_eval.metrics import RESAMPLES, Resampled, convention_named, resample
from tfanet_eval.report import charts
from tfanet_eval.report.error_maps import KEY
from tfanet_eval.report.images import sheets_of
from tfanet_eval.results import Record, Results

_SHOWN = ("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9")


@dataclass(frozen=True)
class Entry:
    """One engine of a report."""

    name: str
    colour: str
    results: Results
    evaluation: Evaluation
    engine: Path | None
    """The engine's file, to draw its masks; None when it is not at hand."""

    @property
    def timed(self) -> bool:
        """False of a reference, of which only accuracy is known."""
        return not np.isnan(self.evaluation.latency.median)

    def of(self, splits: Sequence[str]) -> Evaluation:
        """The part of the evaluation that is of `splits`."""
        records = tuple(record for record in self.evaluation.records if record.split in splits)
        return Evaluation(records, self.evaluation.convention)


@dataclass(frozen=True)
class _Cell:
    value: str
    note: str = ""


@dataclass(frozen=True)
class _Row:
    name: str
    colour: str
    cells: list[_Cell]


@dataclass(frozen=True)
class _Table:
    title: str
    columns: tuple[str, ...]
    rows: list[_Row]


def write_report(
    path: Path,
    results: Sequence[Results],
    engines: Mapping[str, Path] = MappingProxyType({}),
    *,
    drift: Path | None = None,
    trust: bool = False,
) -> None:
    """Write the page to `path`, atomically. The first of `results` is what the others are compared with.

    `engines` are the files that were evaluated by their `model_sha256`; they draw the masks (`trust` opens
    plans that were built elsewhere), and without one of them the page has no pictures and says so. `drift`
    is an SVG of `tfanet-eval drift`. `UserError` when results are not of the same expressions, a file of
    `engines` belongs to none, or `drift` is no SVG.
    """
    entries = _entries(results, engines)
    first = entries[0].results.run
    figure = None if drift is None else _drift(drift)
    sheets, why_none = sheets_of(entries, trust=trust)
    values = {
        "title": f"{data_name(first['dataset'], first['split_by'])}: {', '.join(first['splits'])}",
        "subtitle": _subtitle(entries[0]),
        "tables": _tables(entries),
        "charts": _charts(entries),
        "sheets": sheets,
        "key": [(name, "rgb({}, {}, {})".format(*colour)) for name, colour in KEY],
        "no_pictures": why_none,
        "drift": figure,
        "origins": [{"name": entry.name, "rows": _origin(entry)} for entry in entries],
        "resamples": RESAMPLES,
        "version": version("tfanet"),
        "date": datetime.date.today().isoformat(),
    }
    text = _template().render(values)
    write_text(path, text)


def results_of(request: EvaluationJob, found: Mapping[str, Evaluation]) -> list[Results]:
    """What `run_job` found for `request`, as `write_report` takes it; a reference comes first."""
    run = request.description
    where = environment(max(evaluation.timing.processes for evaluation in found.values()))
    records = tuple(record for evaluation in found.values() for record in evaluation.records)
    results = [Results(request.engine, run, where, records)]
    if request.reference is not None:
        of = {"engine": run["reference"], "engine_sha256": run["reference_sha256"], "precision": "fp32"}
        none = {"reference": None, "reference_sha256": None}
        theirs = tuple(_of_reference(record) for record in records)
        results.insert(0, Results(request.reference, run | of | none, where, theirs))
    return results


def _of_reference(record: Record) -> Record:
    """What the reference gave for the same expression; how long it took nobody measured."""
    assert record.reference is not None
    counts = {"intersection": record.reference.intersection, "union": record.reference.union}
    return dataclasses.replace(record, **counts, ms=math.nan, reference=None)


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tfanet_eval.report", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html.jinja")


def _entries(results: Sequence[Results], files: Mapping[str, Path]) -> list[Entry]:
    results = _same(results)
    known = {found.run["engine_sha256"] for found in results}
    for digest, file in files.items():
        if digest not in known:
            raise UserError(
                f"no results are of {file}: it is another file than the engines that were evaluated"
            )
    names = [found.run["engine"] for found in results]
    entries = []
    for place, found in enumerate(results):
        name = names[place] if names.count(names[place]) == 1 else f"{names[place]} ({found.path.name})"
        evaluation = Evaluation(found.records, convention_named(found.run["convention"]))
        colour = charts.COLOURS[place % len(charts.COLOURS)]
        entries.append(Entry(name, colour, found, evaluation, files.get(found.run["engine_sha256"])))
    return entries


def _same(results: Sequence[Results]) -> list[Results]:
    """The results, each in the order of the first; `UserError` unless they are of the same expressions."""
    if not results:
        raise UserError("a report needs at least one results file")
    first, found = results[0], []
    for other in results:
        pairing = pair_records(first, other)
        if pairing.only_first or pairing.only_second:
            raise UserError(
                f"{other.path} and {first.path} are not of the same expressions: only such stand side by side"
            )
        found.append(dataclasses.replace(other, records=tuple(record for _, record in pairing.pairs)))
    return found


def _subtitle(entry: Entry) -> str:
    run, records = entry.results.run, entry.evaluation.records
    pictures = len({(record.split, record.image) for record in records})
    notes = [f"{_counted(len(records), 'expression')}, {_counted(pictures, 'picture')}"]
    notes.append(f"convention {run['convention']}")
    notes += ["sentences SHUFFLED among pictures"] if run["shuffled_sentences"] else []
    return " · ".join(notes)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _tables(entries: Sequence[Entry]) -> list[_Table]:
    splits = tuple(dict.fromkeys(record.split for record in entries[0].evaluation.records))
    groups = [splits] if len(splits) == 1 else [splits, *((split,) for split in splits)]
    compared = any(entry.evaluation.comparison is not None for entry in entries)
    columns = ("engine", *_SHOWN, *(["Δ mIoU"] if len(entries) > 1 else []))
    columns += ("mask agreement", "max logit error") if compared else ()
    columns += ("ms per image", "p95 ms", "images/s")
    return [
        _Table(", ".join(group) if len(group) > 1 else group[0], columns, _rows(entries, group, compared))
        for group in groups
    ]


def _rows(entries: Sequence[Entry], splits: Sequence[str], compared: bool) -> list[_Row]:
    rows: list[_Row] = []
    parts = [entry.of(splits) for entry in entries]
    drawn = [resample(part.records, part.convention) for part in parts]
    for entry, part, again in zip(entries, parts, drawn, strict=True):
        figures = part.metrics.result()
        cells = [_Cell(f"{100 * figures[name]:.2f}", _between(*again.interval(name))) for name in _SHOWN]
        if len(entries) > 1:
            cells.append(_difference(parts[0], drawn[0], part, again))
        if compared:
            found = part.comparison
            cells += (
                [_Cell("–"), _Cell("–")]
                if found is None
                else [
                    _Cell(f"{100 * found.parity.mask_agreement:.3f}"),
                    _Cell(f"{found.parity.max_abs_error:.1e}"),
                ]
            )
        times = (part.latency.median, part.latency.p95, 1e3 / part.latency.median) if entry.timed else ()
        cells += [_Cell(f"{value:.1f}") for value in times] or [_Cell("–")] * 3
        rows.append(_Row(entry.name, entry.colour, cells))
    return rows


def _difference(base: Evaluation, base_drawn: Resampled, part: Evaluation, drawn: Resampled) -> _Cell:
    if base is part:
        return _Cell("–")
    change = part.metrics.result()["mIoU"] - base.metrics.result()["mIoU"]
    low, high = drawn.difference(base_drawn, "mIoU")
    return _Cell(_signed(change), f"{_signed(low)} to {_signed(high)}")


def _signed(change: float) -> str:
    """In points, and nothing is neither more nor less than nothing."""
    return f"{round(100 * change, 2) + 0.0:+.2f}"


def _between(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _charts(entries: Sequence[Entry]) -> list[dict[str, str]]:
    rules = entries[0].evaluation.convention
    ious = [
        (entry.name, np.array([rules.iou(r.intersection, r.union) for r in entry.evaluation.records]))
        for entry in entries
    ]
    timed = [entry for entry in entries if entry.timed]
    times = [(entry.name, np.array(entry.evaluation.latency.milliseconds)) for entry in timed]
    calls = " and ".join(sorted({f"{entry.evaluation.latency.batch}" for entry in timed}))
    return [
        {"svg": charts.iou_histogram(ious), "caption": "How many expressions reach which IoU."},
        {
            "svg": charts.precision_curve(ious),
            "caption": "P@X for every X: the share with IoU of at least X.",
        },
        {
            "svg": charts.latency_distribution(times),
            "caption": f"Share of calls, batch {calls}, that took at most so long. Dots: medians.",
        },
    ]


def _origin(entry: Entry) -> list[tuple[str, str]]:
    run, environment = entry.results.run, entry.results.environment
    rows = [(name.replace("_", " "), _said(value)) for name, value in run.items() if name != "data"]
    rows += [("results", entry.results.path.name), ("processor", environment["cpu"] or "unknown")]
    rows += [("GPU", environment["gpu"] or "none"), ("processes", str(environment.get("processes", 1)))]
    rows.append(("versions", ", ".join(f"{k} {v}" for k, v in environment["versions"].items())))
    return rows


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _drift(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    start = text.find("<svg")
    if start < 0 or "<script" in text.lower():
        raise UserError(f"{path} is no drawing of tfanet-eval drift")
    return text[start:]
