"""What `scan_gpu.py` reports: a table a section, ratios, shares of the copy bandwidth, goals."""

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
from report import Table

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
    """A figure to reach, wherever a case has one."""

    text: str
    least: float
    percent: bool
    figure: Callable[[Mapping[str, Row], float], float | None]
    """Of a case's rows by name and the copy bandwidth; None where the rows lack it."""
    section: str
    size: str = ""
    """The only size that it is for."""
    dtypes: tuple[str, ...] = ("FP16",)


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str, int, str], dict[str, Row]]:
    """The rows of each case by name."""
    found: dict[tuple[str, str, int, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.case, {})[row.name] = row
    return found


def times_as_fast(ours: Row | None, other: Row | None) -> float | None:
    """How many times as fast ours is; None where a time is missing."""
    return other.median / ours.median if ours and other and ours.seconds and other.seconds else None


def share_of_copy(row: Row | None, bandwidth: float) -> float | None:
    """Bytes over time, over the copy bandwidth; None where bytes or time are missing."""
    return row.moved_bytes / row.median / bandwidth if row and row.seconds and row.moved_bytes else None


def section_table(section: str, rows: Sequence[Row], bandwidth: float) -> Table:
    """A line a candidate, case after case."""
    model = section == MODEL
    columns = ["size", "batch", "dtype", "what", "ms a picture" if model else "ms", "ours is x as fast"]
    columns += ["error"] if model else ["MB", "GB/s", "% of copy", "error"]
    lines = []
    for (_, size, batch, dtype), found in grouped(rows).items():
        ours = next((row for row in found.values() if row.ours), None)
        for name, row in found.items():
            cells = [size, str(batch), dtype, name, time_cell(row, batch if model else 1)]
            cells.append(number(None if row.ours else times_as_fast(ours, row), "{:.2f}"))
            if not model:
                share = share_of_copy(row, bandwidth)
                cells.append(number(row.moved_bytes / 1e6 if share else None, "{:.1f}"))
                cells.append(number(share and share * bandwidth / 1e9, "{:.0f}"))
                cells.append(number(share and 100 * share, "{:.1f}"))
            lines.append([*cells, number(row.error, "{:.1e}")])
    return Table(TITLES[section], columns, lines, texts=4)


def time_cell(row: Row, share: int) -> str:
    """Milliseconds, with a star where they are the host's; or why there are none."""
    if not row.seconds:
        why = row.why.replace("|", "/")
        return why if len(why) <= LONGEST_CELL else f"{why[: LONGEST_CELL - 3]}..."
    return f"{1e3 * row.median / share:.4f}{'*' if row.host_bound else ''}"


def number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def ratio_goal(
    text: str, least: float, names: tuple[str, str], section: str, dtypes: tuple[str, ...]
) -> Goal:
    ours, other = names

    def figure(rows: Mapping[str, Row], bandwidth: float) -> float | None:
        return times_as_fast(rows.get(ours), rows.get(other))

    return Goal(text, least, False, figure, section, dtypes=dtypes)


def goals() -> list[Goal]:
    """What the kernels are to reach."""

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
    """Every goal at every case that it is for: met, not met, or without a figure."""
    lines = []
    for goal in goals():
        for (section, size, batch, dtype), found in grouped(rows).items():
            if section != goal.section or goal.size not in ("", size) or dtype not in goal.dtypes:
                continue
            value = goal.figure(found, bandwidth)
            form = "{:.1%}" if goal.percent else "{:.2f}"
            verdict = "no figure" if value is None else "met" if value >= goal.least else "not met"
            figures = [number(value, form), f">= {form.format(goal.least)}", verdict]
            lines.append([goal.text, size, str(batch), dtype, *figures])
    return Table("Goals", ["goal", "size", "batch", "dtype", "measured", "goal", "verdict"], lines, texts=4)


def definitions() -> list[str]:
    """What the figures mean."""
    return [
        "ms: median of the runs by CUDA events, the second-level cache flushed before each; where a star "
        "stands, the host may have launched more slowly than the GPU ran",
        "ours is x as fast: the line's time over that of our kernel in the same case",
        "MB: every input read once and every output written once, in the types that the line has; % of copy: "
        "these bytes over time, over the bandwidth of a copy of 1 GiB in the same run",
        "error: largest difference from the vectorised path as a share of its largest value, before timing",
        "sizes: tokens x channels of one of the 4 directions; mamba_ssm's result has the inputs' type, ours "
        "and VMamba's are FP32",
    ]


def exceptions(rows: Sequence[Row], repeats: int) -> list[str]:
    """What has no figure, or one of fewer runs than were asked for."""
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
            lines.append(f"{what}: over the limit, so of {len(row.seconds)} runs only")
    return lines


def records(rows: Sequence[Row], bandwidth: float) -> list[dict[str, Any]]:
    """The rows for JSON, with every timed run."""
    found = []
    for row in rows:
        error = None if row.error is None or math.isnan(row.error) else row.error
        times = {
            "median": row.median if row.seconds else None,
            "share_of_copy": share_of_copy(row, bandwidth),
        }
        found.append(asdict(row) | {"error": error} | times)
    return found
