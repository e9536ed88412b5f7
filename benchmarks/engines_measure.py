"""How whole engines are checked and timed; timer and memory gauge are handed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np
from gpu_measure import failures, first_line, run_count
from report import Table

from tfanet.errors import UserError, VerificationError
from tfanet_engines import ParityFigures, compare_logits, gate

Infer = Callable[[np.ndarray, np.ndarray], np.ndarray]
Timer = Callable[[Callable[[], Any]], list[float]]
WARMUP_CALLS = 3


@dataclass(frozen=True)
class Rival:
    """One way to run the model."""

    name: str
    precision: str
    """`fp32` or `fp16`: the bounds that its logits are held to."""
    opened: Callable[[], AbstractContextManager[Infer]]
    """Opens it; arrays of the host go in and come out."""


@dataclass(frozen=True)
class Row:
    """What was found for one rival at one batch size."""

    name: str
    precision: str
    batch: int
    seconds: list[float] = field(default_factory=list)
    """Of each call, host to host; empty where `why` says why there are none."""
    memory_bytes: int | None = None
    """Of the device's memory, taken since before the rival was opened."""
    parity: ParityFigures | None = None
    wrong: bool = False
    """Whether the logits are out of bounds; such a rival is not timed."""
    why: str = ""


def wall_timer(repeats: int, limit: float) -> Timer:
    """Seconds of `repeats` calls after a few unmeasured ones, fewer where they would exceed `limit`."""

    def timer(call: Callable[[], Any]) -> list[float]:
        def once() -> float:
            began = time.perf_counter()
            call()
            return time.perf_counter() - began

        warm = min(once() for _ in range(WARMUP_CALLS))
        return [once() for _ in range(run_count(warm, repeats, limit))]

    return timer


def measure(
    rival: Rival,
    batches: Sequence[int],
    images: np.ndarray,
    tokens: np.ndarray,
    expected: np.ndarray,
    timer: Timer,
    used_bytes: Callable[[], int],
) -> list[Row]:
    """A row for each batch size; one that cannot be opened, or fails, is a row with its message."""
    rows: list[Row] = []
    before = used_bytes()
    try:
        with rival.opened() as infer:
            for batch in batches:
                rows.append(_measure_one(rival, infer, batch, images, tokens, expected, timer))
                rows[-1] = _with_memory(rows[-1], used_bytes() - before)
    except _failures() as error:
        rows += [Row(rival.name, rival.precision, n, why=first_line(error)) for n in batches[len(rows) :]]
    return rows


def _measure_one(
    rival: Rival, infer: Infer, batch: int, images: np.ndarray, tokens: np.ndarray, expected: np.ndarray,
    timer: Timer,
) -> Row:  # fmt: skip
    key = rival.name, rival.precision, batch
    parity = None
    try:
        starts = range(0, len(images) - batch + 1, batch)
        found = np.concatenate([infer(images[i : i + batch], tokens[i : i + batch]) for i in starts])
        parity = compare_logits(expected[: len(found)], found)
        gate([parity], rival.precision).require()
        return Row(*key, seconds=timer(lambda: infer(images[:batch], tokens[:batch])), parity=parity)
    except VerificationError as error:
        return Row(*key, parity=parity, wrong=True, why=f"not timed: {error}")
    except _failures() as error:
        return Row(*key, parity=parity, why=first_line(error))


def _failures() -> tuple[type[Exception], ...]:
    return (*failures(), UserError, VerificationError)


def _with_memory(row: Row, taken: int) -> Row:
    return Row(**{**vars(row), "memory_bytes": taken if row.seconds else None})


def table(rows: Sequence[Row]) -> Table:
    """A line a rival and batch size; ratios are to the first rival at the same batch size."""
    columns = [
        "engine", "precision", "batch", "median ms", "p95 ms", "pictures/s", "x the first", "MiB",
        "max logit error", "mask agreement", "loaded",
    ]  # fmt: skip
    first = {row.batch: median(row.seconds) for row in rows if row.name == rows[0].name and row.seconds}
    lines = []
    for row in rows:
        cells = ["–"] * 5
        if row.seconds:
            middle, late = median(row.seconds), float(np.percentile(row.seconds, 95))
            ratio = f"{first[row.batch] / middle:.2f}" if row.batch in first else "–"
            memory = f"{(row.memory_bytes or 0) / 2**20:.0f}"
            cells = [f"{1e3 * middle:.2f}", f"{1e3 * late:.2f}", f"{row.batch / middle:.1f}", ratio, memory]
        parity = ["–"] * 2
        if row.parity is not None:
            parity = [f"{row.parity.max_abs_error:.1e}", f"{row.parity.mask_agreement:.4f}"]
        state = row.why.replace("|", "/") or "yes"
        lines.append([row.name, row.precision, str(row.batch), *cells, *parity, state])
    return Table("Engines, host to host", columns, lines, texts=2)


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for JSON, with every timed call."""
    return [
        asdict(row) | {"parity": row.parity.to_dict() if row.parity is not None else None} for row in rows
    ]
