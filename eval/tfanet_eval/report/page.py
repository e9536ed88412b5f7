"""One self-contained HTML page that compares evaluations of the same expressions."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tfanet.data.refer import data_name
from tfanet.errors import UserError
from tfanet.files import write_text
from tfanet_eval.metrics import RESAMPLES
from tfanet_eval.report import charts
from tfanet_eval.report.entries import Entry, entries_of
from tfanet_eval.report.error_maps import KEY
from tfanet_eval.report.images import sections_of
from tfanet_eval.report.tables import tables_of
from tfanet_eval.results import Results


def write_report(
    path: Path,
    results: Sequence[Results],
    engines: Mapping[str, Path] = MappingProxyType({}),
    *,
    drift: Path | None = None,
    trust: bool = False,
) -> None:
    """Write the page to `path`, atomically. The other `results` are compared with the first.

    `engines` maps `model_sha256` to the evaluated file. They draw the masks (`trust` opens plans that were
    built elsewhere); if one is missing, the page shows no images and says why. `drift` is an SVG file of
    `tfanet-eval drift`.

    Raises `UserError` if the results are not of the same expressions, a file of `engines` belongs to none of
    them, or `drift` is not an SVG.
    """
    entries = entries_of(results, engines)
    run = entries[0].results.run
    drift_svg = None if drift is None else _read_svg(drift)
    sections, why_no_images = sections_of(entries, trust=trust)
    values = {
        "title": f"{data_name(run['dataset'], run['split_by'])}: {', '.join(run['splits'])}",
        "subtitle": _subtitle(entries[0]),
        "tables": tables_of(entries),
        "charts": _charts(entries),
        "sections": sections,
        "key": [(name, "rgb({}, {}, {})".format(*colour)) for name, colour in KEY],
        "why_no_images": why_no_images,
        "drift": drift_svg,
        "origins": [{"name": entry.name, "rows": _origin(entry)} for entry in entries],
        "resamples": RESAMPLES,
        "version": version("tfanet"),
        "date": datetime.date.today().isoformat(),
    }
    write_text(path, _template().render(values))


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tfanet_eval.report", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html.jinja")


def _subtitle(entry: Entry) -> str:
    run, records = entry.results.run, entry.evaluation.records
    images = len({(record.split, record.image) for record in records})
    notes = [f"{_counted(len(records), 'expression')}, {_counted(images, 'image')}"]
    notes.append(f"convention {run['convention']}")
    notes += ["expressions SHUFFLED among images"] if run["shuffled_sentences"] else []
    return " · ".join(notes)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _charts(entries: Sequence[Entry]) -> list[dict[str, str]]:
    ious = [(entry.name, entry.ious) for entry in entries]
    timed = [entry for entry in entries if entry.timed]
    times = [(entry.name, np.array(entry.evaluation.latency.milliseconds)) for entry in timed]
    batches = " and ".join(sorted({f"{entry.evaluation.latency.batch}" for entry in timed}))
    return [
        {"svg": charts.iou_histogram(ious), "caption": "Share of expressions by IoU."},
        {
            "svg": charts.precision_curve(ious),
            "caption": "P@X for every X: the share of expressions with IoU of at least X.",
        },
        {
            "svg": charts.latency_distribution(times),
            "caption": f"Share of calls, batch {batches}, within this latency. Dots: medians.",
        },
    ]


def _origin(entry: Entry) -> list[tuple[str, str]]:
    """What was evaluated and where, as rows of name and value."""
    run, environment = entry.results.run, entry.results.environment
    rows = [(name.replace("_", " "), _as_text(value)) for name, value in run.items() if name != "data"]
    rows += [("results", entry.results.path.name), ("processor", environment["cpu"] or "unknown")]
    rows += [("GPU", environment["gpu"] or "none"), ("processes", str(environment.get("processes", 1)))]
    rows.append(("versions", ", ".join(f"{k} {v}" for k, v in environment["versions"].items())))
    return rows


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_svg(path: Path) -> str:
    """The `<svg>` element of a file; `UserError` if there is none or it contains a script."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    start = text.find("<svg")
    if start < 0 or "<script" in text.lower():
        raise UserError(f"{path} is not an SVG of tfanet-eval drift")
    return text[start:]
