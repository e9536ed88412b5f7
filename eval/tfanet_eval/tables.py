"""Tables of metrics for the terminal, Markdown and JSON, from the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfanet_eval.metrics import THRESHOLDS

if TYPE_CHECKING:
    from rich.table import Table

    from tfanet_eval.evaluation import Evaluation

MISSING = "–"
_WIDE = 1000

Row = Mapping[str, Any]
"""Column name to raw value: text, a number in the unit of `_FORMATS`, or None if missing."""


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


_FORMATS: dict[str, Callable[[Any], str]] = {
    "mIoU": _percent,
    "oIoU": _percent,
    **{f"P@{threshold}": _percent for threshold in THRESHOLDS},
    "Δ mIoU": lambda value: f"{100 * value:+z.2f}",
    "max logit error": lambda value: f"{value:.1e}",
    "mask agreement": lambda value: f"{100 * value:.3f}",
    "ms per image": lambda value: f"{value:.1f}",
    "p95 ms": lambda value: f"{value:.1f}",
    "MB": lambda value: f"{value / 1e6:.2f}",
    "peak MB": lambda value: f"{value / 1e6:.0f}",
    "images/s": lambda value: f"{value:.1f}",
    "speedup": lambda value: f"{value:.2f}",
}
"""Fractions 0..1 are printed in percent, bytes in MB; columns that are not listed by `str`."""


def metric_columns(evaluation: Evaluation) -> dict[str, Any]:
    """The columns of one evaluation: accuracy, sample count, latency, and with a reference the parity."""
    row: dict[str, Any] = evaluation.metrics.result()
    row |= {"ms per image": evaluation.latency.median, "p95 ms": evaluation.latency.p95}
    if evaluation.comparison is not None:
        parity = evaluation.comparison.parity
        row |= {
            "Δ mIoU": -evaluation.drops["mIoU"],
            "max logit error": parity.max_abs_error,
            "mask agreement": parity.mask_agreement,
        }
    return row


def cell(column: str, value: Any) -> str:
    """The text of a value in the tables."""
    return MISSING if value is None else _FORMATS.get(column, str)(value)


def select(rows: Sequence[Row], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows for JSON: raw values of exactly `columns`, None where a row has none."""
    return [{column: row.get(column) for column in columns} for row in rows]


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[cell(column, row.get(column)) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show(rows: Sequence[Row], columns: Sequence[str], title: str) -> None:
    """Print a table on stdout; transposed if the terminal is too narrow, so that no value wraps."""
    from rich.console import Console

    grid = [list(columns), *([cell(column, row.get(column)) for column in columns] for row in rows)]
    console = Console(highlight=False)
    table = _table(grid, _WIDE)
    needed = Console(width=_WIDE).measure(table).maximum
    if console.is_terminal and needed > console.width:
        table = _table([list(line) for line in zip(*grid, strict=True)], console.width)
    elif needed > console.width:
        console = Console(highlight=False, width=needed)
    console.print(f"\n{title}", markup=False, soft_wrap=True)
    console.print(table)


def _table(grid: list[list[str]], width: int) -> Table:
    """A table; the first line of `grid` is the heading, the first column is text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for number, heading in enumerate(grid[0]):
        limit = None if number else max(12, width // 3)
        table.add_column(Text(heading), justify="right" if number else "left", max_width=limit)
    for line in grid[1:]:
        table.add_row(*map(Text, line))
    return table
