"""The report of `scan_gpu.py`: a table per section, ratios, shares of the copy bandwidth, goals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpu_cases import (
    ATTENTION,
    BACKWARD,
    CROSS,
    FUSED,
    MAMBA,
    MODEL,
    OUR_KERNELS,
    SCAN,
    TRITON,
    UNFUSED,
    VECTORISED,
)
from gpu_measure import Row
from report import Table, cell, number

TITLES = {
    SCAN: "Selective scan, forward",
    BACKWARD: "Selective scan, backward",
    CROSS: "Scan of a map in four directions, forward",
    ATTENTION: "Linear cross-attention, forward",
    MODEL: "The whole model, eager",
}
GOAL_SIZE = "14400 x 256"
LONGEST_CELL = 44


@dataclass(frozen=True)
class Goal:
    """A value that the cases of a section should reach."""

    text: str
    least: float
    percent: bool
    value: Callable[[Mapping[str, Row], float], float | None]
    """Of a case's rows by name and the copy bandwidth; None if a measurement is missing."""
    section: str
    size: str = ""
    """The only size it applies to; empty for all."""
    dtypes: tuple[str, ...] = ("FP16",)


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str, int, str], dict[str, Row]]:
    """The rows of each case by name."""
    cases: dict[tuple[str, str, int, str], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(row.case, {})[row.name] = row
    return cases


def times_as_fast(ours: Row | None, other: Row | None) -> float | None:
    """Time of `other` over time of `ours`; None if one is missing."""
    return other.median / ours.median if ours and other and ours.seconds and other.seconds else None


def share_of_copy(row: Row | None, bandwidth: float) -> float | None:
    """Bytes over time, over the copy bandwidth; None if bytes or time are missing."""
    return row.moved_bytes / row.median / bandwidth if row and row.seconds and row.moved_bytes else None


def section_table(section: str, rows: Sequence[Row], bandwidth: float) -> Table:
    """One line per candidate, case by case."""
    model = section == MODEL
    columns = ["size", "batch", "dtype", "candidate", "ms per image" if model else "ms", "speedup of ours"]
    columns += ["error"] if model else ["MB", "GB/s", "% of copy", "error"]
    lines = []
    for (_, size, batch, dtype), by_name in grouped(rows).items():
        ours = next((row for row in by_name.values() if row.ours), None)
        for name, row in by_name.items():
            cells = [size, str(batch), dtype, name, time_cell(row, batch if model else 1)]
            cells.append(number(None if row.ours else times_as_fast(ours, row), "{:.2f}"))
            if not model:
                share = share_of_copy(row, bandwidth)
                cells.append(number(row.moved_bytes / 1e6 if share else None, "{:.1f}"))
                cells.append(number(share and share * bandwidth / 1e9, "{:.0f}"))
                cells.append(number(share and 100 * share, "{:.1f}"))
            lines.append([*cells, number(row.error, "{:.1e}")])
    return Table(TITLES[section], columns, lines, texts=4)


def time_cell(row: Row, images: int) -> str:
    """Milliseconds over `images`, with a star if host-bound; or the reason why there are none."""
    if not row.seconds:
        why = cell(row.why)
        return why if len(why) <= LONGEST_CELL else f"{why[: LONGEST_CELL - 3]}..."
    return f"{1e3 * row.median / images:.4f}{'*' if row.host_bound else ''}"


def ratio_goal(
    text: str, least: float, names: tuple[str, str], section: str, dtypes: tuple[str, ...]
) -> Goal:
    ours, other = names

    def value(rows: Mapping[str, Row], bandwidth: float) -> float | None:
        return times_as_fast(rows.get(ours), rows.get(other))

    return Goal(text, least, False, value, section, dtypes=dtypes)


def goals() -> list[Goal]:
    """The values that our kernels should reach."""

    def share(rows: Mapping[str, Row], bandwidth: float) -> float | None:
        return share_of_copy(rows.get(TRITON), bandwidth)

    half, both = ("FP16",), ("FP16", "FP32")
    mamba, fused = (TRITON, MAMBA), (FUSED, UNFUSED)
    model = (OUR_KERNELS, VECTORISED)
    return [
        Goal("our scan, of the copy bandwidth", 0.85, True, share, SCAN, GOAL_SIZE),
        ratio_goal("our scan / mamba_ssm", 1.5, mamba, SCAN, half),
        ratio_goal("fused / unfused chain", 2.0, fused, CROSS, half),
        ratio_goal("model: our kernels / vectorised", 2.0, model, MODEL, both),
    ]


def goals_table(rows: Sequence[Row], bandwidth: float) -> Table:
    """Every goal for every case it applies to: met, not met, or not measured."""
    lines = []
    for goal in goals():
        for (section, size, batch, dtype), by_name in grouped(rows).items():
            if section != goal.section or goal.size not in ("", size) or dtype not in goal.dtypes:
                continue
            value = goal.value(by_name, bandwidth)
            form = "{:.1%}" if goal.percent else "{:.2f}"
            verdict = "not measured" if value is None else "met" if value >= goal.least else "not met"
            measured = [number(value, form), f">= {form.format(goal.least)}", verdict]
            lines.append([goal.text, size, str(batch), dtype, *measured])
    return Table("Goals", ["goal", "size", "batch", "dtype", "measured", "goal", "verdict"], lines, texts=4)


def definitions() -> list[str]:
    """What the columns mean."""
    return [
        "ms: median of the runs by CUDA events, with the second-level cache flushed before each; a star: "
        "the GPU may have waited for the host",
        "speedup of ours: time of the line over the time of our kernel in the same case",
        "MB: every input read once and every output written once, in their dtypes; % of copy: bytes over "
        "time, over the bandwidth of a copy of 1 GiB in the same run",
        "error: largest difference from the vectorised path over its largest value, before timing",
        "size: tokens x channels of one of the 4 directions; the result of mamba_ssm has the inputs' dtype, "
        "ours and VMamba's are FP32",
    ]


def exceptions(rows: Sequence[Row], repeats: int) -> list[str]:
    """Candidates that were not measured, or in fewer than `repeats` runs."""
    missing: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.why:
            where = f"{row.size} at batch {row.batch} in {row.dtype}"
            missing.setdefault((row.section, row.name, row.why), []).append(where)
    lines = [
        f"{section}, {name}: {why} ({'; '.join(places)})" for (section, name, why), places in missing.items()
    ]
    for row in rows:
        if 0 < len(row.seconds) < repeats:
            what = f"{row.section}, {row.name}, {row.size}, batch {row.batch}, {row.dtype}"
            lines.append(f"{what}: only {len(row.seconds)} runs within the time limit")
    return lines


def records(rows: Sequence[Row], bandwidth: float) -> list[dict[str, Any]]:
    """The rows for JSON, with the time of every run."""
    results = []
    for row in rows:
        error = None if row.error is None or math.isnan(row.error) else row.error
        times = {
            "median": row.median if row.seconds else None,
            "share_of_copy": share_of_copy(row, bandwidth),
        }
        results.append(asdict(row) | {"error": error} | times)
    return results
