"""The tables of a report: metrics with 95 % intervals, differences, parity and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tfanet_eval.evaluation import Evaluation
from tfanet_eval.metrics import Resampled, resample
from tfanet_eval.report.entries import Entry

_METRICS = ("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9")


@dataclass(frozen=True)
class Cell:
    value: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    colour: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: list[Row]


def tables_of(entries: Sequence[Entry]) -> list[Table]:
    """One table of all splits and, if there are several, one of each."""
    splits = tuple(dict.fromkeys(record.split for record in entries[0].evaluation.records))
    groups = [splits] if len(splits) == 1 else [splits, *((split,) for split in splits)]
    compared = any(entry.evaluation.comparison is not None for entry in entries)
    columns = ("engine", *_METRICS, *(["Δ mIoU"] if len(entries) > 1 else []))
    columns += ("mask agreement", "max logit error") if compared else ()
    columns += ("ms per image", "p95 ms", "images/s")
    return [Table(", ".join(group), columns, _rows(entries, group, compared)) for group in groups]


def _rows(entries: Sequence[Entry], splits: Sequence[str], compared: bool) -> list[Row]:
    parts = [entry.of(splits) for entry in entries]
    samples = [resample(part.records, part.convention) for part in parts]
    rows = []
    for entry, part, sample in zip(entries, parts, samples, strict=True):
        metrics = part.metrics.result()
        cells = [Cell(f"{100 * metrics[name]:.2f}", _interval(*sample.interval(name))) for name in _METRICS]
        if len(entries) > 1:
            cells.append(_difference(parts[0], samples[0], part, sample))
        if compared:
            cells += _parity(part)
        if entry.timed:
            median = part.latency.median
            cells += [Cell(f"{value:.1f}") for value in (median, part.latency.p95, 1e3 / median)]
        else:
            cells += [Cell("–")] * 3
        rows.append(Row(entry.name, entry.colour, cells))
    return rows


def _parity(part: Evaluation) -> list[Cell]:
    if part.comparison is None:
        return [Cell("–"), Cell("–")]
    parity = part.comparison.parity
    return [Cell(f"{100 * parity.mask_agreement:.3f}"), Cell(f"{parity.max_abs_error:.1e}")]


def _difference(base: Evaluation, base_sample: Resampled, part: Evaluation, sample: Resampled) -> Cell:
    """The difference of mIoU to the first engine, with its interval."""
    if base is part:
        return Cell("–")
    change = part.metrics.result()["mIoU"] - base.metrics.result()["mIoU"]
    low, high = sample.difference(base_sample, "mIoU")
    return Cell(_signed(change), f"{_signed(low)} to {_signed(high)}")


def _signed(change: float) -> str:
    """In points with its sign; never -0.00."""
    return f"{round(100 * change, 2) + 0.0:+.2f}"


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"
