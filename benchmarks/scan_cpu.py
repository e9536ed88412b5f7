"""The scan formulations against each other on this machine's CPU: `python benchmarks/scan_cpu.py`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

import typer
from report import RESULTS, Table, check_threads, machine, write
from scan_measure import INPUTS, ONNX, SHIPS, TORCH, Formulation, Job, Measurement, Shape, measure, prepare

from tfanet.console import bar, new_app, run, say
from tfanet.errors import UserError
from tfanet.files import require_writable

T = TypeVar("T")
Results = dict[tuple[Formulation, Shape], Measurement | None]
"""None where the process was killed, for lack of memory most likely."""

SHAPES = "225:2048,900:1024,3600:512,14400:256"
RIVALS = {"SelectiveScan": "doubling in rows", "CrossSelectiveScan": "copies, doubling in rows"}
"""What the ratios are to."""
app = new_app("Time the formulations of the selective scan on this machine's CPU, each in its own process.")


@app.command()
def scan_cpu(
    shapes: Annotated[str, typer.Option(help="LENGTH:CHANNELS of one direction.")] = SHAPES,
    threads: Annotated[int | None, typer.Option(help="Threads; one a usable core if not given.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs after the first.")] = 5,
    limit: Annotated[float, typer.Option(help="Seconds after which a formulation is not run again.")] = 20.0,
    only: Annotated[str, typer.Option(help="Formulations whose name has this in it.")] = "",
    out: Annotated[
        Path, typer.Option(help="Folder of the report.", show_default="benchmarks/results")
    ] = RESULTS,
) -> None:
    """Check every formulation against the oracle, time it, and write tables to the terminal and --out."""
    wanted, threads = parse_shapes(shapes), check_threads(threads)
    require_writable(out / "scan_cpu")
    about = machine(threads) | {"repeats": repeats}
    results = measure_all(wanted, threads, repeats, limit, only)
    tables = make_tables(results, wanted)
    notes = [*definitions(threads), *verdicts(results, wanted), *exceptions(results, repeats)]
    for table in tables:
        table.show()
    for note in notes:
        say(note)
    for path in write("scan_cpu", out, about, tables, notes, records(results)):
        say(f"wrote {path}")
    say("next: python benchmarks/model_cpu.py")


def parse_shapes(text: str) -> list[Shape]:
    """LENGTH:CHANNELS pairs, comma-separated; `UserError` when one is malformed."""
    shapes = []
    for item in text.split(","):
        length, _, channels = item.strip().partition(":")
        if not (length.isdecimal() and channels.isdecimal()) or int(length) < 1 or int(channels) < 1:
            raise UserError(f"--shapes takes LENGTH:CHANNELS, comma-separated, not {item!r}")
        shapes.append(Shape(int(length), int(channels)))
    return shapes


def in_own_process(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in a fresh process; raises `BrokenProcessPool` when that is killed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def measure_all(shapes: Sequence[Shape], threads: int, repeats: int, limit: float, only: str) -> Results:
    """Every formulation whose name contains `only`, at every shape; `UserError` when there is none."""
    results: Results = {}
    with bar() as progress:
        task = progress.add_task("scans", total=None)
        for number, shape in enumerate(shapes):
            with TemporaryDirectory(prefix="scan-cpu-") as folder:
                progress.update(task, description=f"{shape.length} tokens: oracle")
                try:
                    known = [f for f in in_own_process(prepare, shape, Path(folder)) if only in f.name]
                except BrokenProcessPool as error:
                    raise UserError(
                        f"the oracle at {shape.length} tokens was killed, for lack of memory most likely; "
                        "give smaller --shapes"
                    ) from error
                if not known:
                    raise UserError(f"no formulation has {only!r} in its name")
                progress.update(
                    task, total=len(shapes) * (len(known) + 1), completed=number * (len(known) + 1) + 1
                )
                for formulation in known:
                    progress.update(task, description=f"{shape.length} tokens: {formulation.runtime}")
                    job = Job(formulation, shape, Path(folder), threads, repeats, limit)
                    try:
                        results[formulation, shape] = in_own_process(measure, job)
                    except BrokenProcessPool:
                        results[formulation, shape] = None
                    progress.advance(task)
    return results


def ratio(results: Results, formulation: Formulation, shape: Shape) -> float | None:
    """How many times as fast as its rival (`RIVALS`); None where one of them is missing."""
    rival = replace(formulation, name=RIVALS[formulation.operation])
    ours, theirs = results.get((formulation, shape)), results.get((rival, shape))
    return median(theirs.seconds) / median(ours.seconds) if ours and theirs else None


def make_tables(results: Results, shapes: Sequence[Shape]) -> list[Table]:
    """Time and memory of each operation, a line a formulation, a column a shape."""
    columns = ["runtime", "formulation", *(f"{shape.length} x {shape.channels}" for shape in shapes)]
    tables = []
    for operation, rival in RIVALS.items():
        known = list(dict.fromkeys(f for f, _ in results if f.operation == operation))
        times, peaks = [], []
        for formulation in known:
            cells = [(results[formulation, shape], ratio(results, formulation, shape)) for shape in shapes]
            times.append([formulation.runtime, formulation.name, *(time_cell(*cell) for cell in cells)])
            peaks.append([formulation.runtime, formulation.name, *(peak_cell(found) for found, _ in cells)])
        if known:
            tables.append(Table(f"{operation}: ms (times as fast as {rival!r})", columns, times, texts=2))
            tables.append(Table(f"{operation}: peak memory, MB", columns, peaks, texts=2))
    return tables


def time_cell(found: Measurement | None, times_as_fast: float | None) -> str:
    if found is None:
        return "killed"
    beside = f" ({times_as_fast:.2f})" if times_as_fast else ""
    return f"{1e3 * median(found.seconds):.1f}{beside}"


def peak_cell(found: Measurement | None) -> str:
    return "killed" if found is None else f"{found.peak_bytes / 1e6:.0f}"


def definitions(threads: int) -> list[str]:
    """What the figures mean."""
    return [
        f"columns: tokens x channels of one of the 4 directions; FP32, one picture, {threads} threads",
        "ms: median of the timed runs; in brackets the rival's median of the same run divided by it",
        "MB: peak of the first run above what the process held with its inputs, its result included",
    ]


def verdicts(results: Results, shapes: Sequence[Shape]) -> list[str]:
    """For each operation and runtime whether what ships is the fastest, and where it is not, what is."""
    lines = []
    for operation in INPUTS:
        for runtime in (TORCH, ONNX):
            won, lost = [], []
            for shape in shapes:
                medians = {
                    formulation.name: median(found.seconds)
                    for (formulation, at), found in results.items()
                    if found
                    and (formulation.operation, formulation.runtime, at) == (operation, runtime, shape)
                }
                if SHIPS not in medians or len(medians) < 2:
                    continue
                best = min(medians, key=lambda name: medians[name])
                if best == SHIPS:
                    won.append(str(shape.length))
                else:
                    faster = medians[SHIPS] / medians[best]
                    lost.append(f"at {shape.length} tokens {best!r} is {faster:.2f} times as fast")
            fastest = [f"what ships is the fastest at {', '.join(won)} tokens"] if won else []
            if fastest or lost:
                lines.append(f"{operation} in {runtime}: {'; '.join(fastest + lost)}")
    return lines


def exceptions(results: Results, repeats: int) -> list[str]:
    """What did not run as often as it was asked to."""
    lines = []
    for (formulation, shape), found in results.items():
        what = (
            f"{formulation.operation} in {formulation.runtime}, {formulation.name!r}, {shape.length} tokens"
        )
        if found is None:
            lines.append(f"{what}: the process was killed, for lack of memory most likely")
        elif len(found.seconds) < repeats:
            lines.append(f"{what}: over the limit, so of {len(found.seconds)} run(s) only")
    return lines


def records(results: Results) -> list[dict[str, Any]]:
    """The results for JSON: one entry a formulation and shape, with every timed run."""
    return [
        {**asdict(formulation), "tokens": shape.length, "channels": shape.channels}
        | ({"killed": True} if found is None else asdict(found) | {"median": median(found.seconds)})
        | {"times_as_fast_as_rival": ratio(results, formulation, shape)}
        for (formulation, shape), found in results.items()
    ]


if __name__ == "__main__":
    run(app)
