"""The scans on this machine's CPU, compiled and not: `python benchmarks/scan_cpu.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from options import (
    RESULTS,
    SHAPES,
    OutOption,
    Shape,
    ShapesOption,
    ThreadsOption,
    check_threads,
    parse_shapes,
)
from report import Table, machine, number, show, write

from tfanet.console import new_app, run, say
from tfanet.files import require_writable

if TYPE_CHECKING:
    from scan_measure import Row

app = new_app("Time our compiled scans and what runs without them, on this machine's CPU.")


@app.command()
def scan_cpu(
    shapes: ShapesOption = SHAPES,
    threads: ThreadsOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs after the first.")] = 5,
    out: OutOption = RESULTS,
) -> None:
    """Check every implementation against the oracle, time it, and write the tables to --out."""
    parsed, threads = parse_shapes(shapes), check_threads(threads)
    require_writable(out / "scan_cpu")
    from scan_measure import measure

    about = machine(threads) | {"repeats": repeats}
    rows = [row for shape in parsed for row in measure(shape, threads, repeats)]
    tables = make_tables(rows, parsed)
    notes = definitions(threads)
    show(tables, notes, write("scan_cpu", out, about, tables, notes, records(rows)))
    say("next: python benchmarks/model_cpu.py")


def speedup(rows: Sequence[Row], row: Row) -> float | None:
    """Median time of the runtime's baseline over that of `row`, at the same shape."""
    from scan_measure import BASELINES

    key = (row.operation, row.runtime, BASELINES[row.runtime], row.tokens, row.channels)
    for other in rows:
        if (other.operation, other.runtime, other.name, other.tokens, other.channels) == key:
            return median(other.seconds) / median(row.seconds)
    return None


def make_tables(rows: Sequence[Row], shapes: Sequence[Shape]) -> list[Table]:
    """A table per operation: one line per implementation, one column per shape."""
    columns = ["runtime", "implementation", *map(str, shapes)]
    lines: dict[str, dict[tuple[str, str], list[str]]] = {}
    for row in rows:
        ratio = number(speedup(rows, row), "{:.2f}")
        cells = lines.setdefault(row.operation, {}).setdefault((row.runtime, row.name), [])
        cells.append(f"{1e3 * median(row.seconds):.1f} ({ratio})")
    return [
        Table(
            f"{operation}: ms (speedup)", columns, [[*key, *cells] for key, cells in by_key.items()], texts=2
        )
        for operation, by_key in lines.items()
    ]


def definitions(threads: int) -> list[str]:
    """What the tables show."""
    return [
        f"columns: tokens x channels of one of the 4 directions; FP32, batch 1, {threads} threads",
        "ms: median of the timed runs; in brackets the speedup over the runtime without our kernels",
    ]


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for JSON, with the time of every run."""
    return [
        asdict(row) | {"median": median(row.seconds), "times_as_fast_as_rival": speedup(rows, row)}
        for row in rows
    ]


if __name__ == "__main__":
    run(app)
