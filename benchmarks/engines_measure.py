"""Whole engines: checked against reference logits, then timed; a row of the report each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
from report import Table, cell, failures, reason
from timing import Timer

from tfanet.errors import VerificationError
from tfanet_engines import ParityMetrics, compare_logits, gate

Infer = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Candidate:
    """One way to run the model."""

    name: str
    precision: str
    """`fp32` or `fp16`: which tolerances apply to its logits."""
    open: Callable[[], AbstractContextManager[Infer]]
    """Opens the engine; its arrays are in the host's memory."""


@dataclass(frozen=True)
class Row:
    """Measurements of one candidate at one batch size."""

    name: str
    precision: str
    batch: int
    seconds: list[float] = field(default_factory=list)
    """Of each call, host to host; empty if `why` has a reason."""
    memory_bytes: int | None = None
    """GPU memory in use, less what was in use before the candidate was opened."""
    parity: ParityMetrics | None = None
    wrong: bool = False
    """Whether the logits exceed the tolerances; such a candidate is not timed."""
    why: str = ""


def measure(
    candidate: Candidate,
    batches: Sequence[int],
    images: np.ndarray,
    tokens: np.ndarray,
    expected: np.ndarray,
    timer: Timer,
    used_bytes: Callable[[], int],
) -> list[Row]:
    """A row for each batch size; if the candidate cannot be opened or fails, `why` has the reason."""
    rows: list[Row] = []
    before = used_bytes()
    try:
        with candidate.open() as infer:
            for batch in batches:
                row = _measure_one(candidate, infer, batch, images, tokens, expected, timer)
                memory = used_bytes() - before if row.seconds else None
                rows.append(replace(row, memory_bytes=memory))
    except failures() as error:
        rows += [
            Row(candidate.name, candidate.precision, batch, why=reason(error))
            for batch in batches[len(rows) :]
        ]
    return rows


def _measure_one(
    candidate: Candidate, infer: Infer, batch: int, images: np.ndarray, tokens: np.ndarray,
    expected: np.ndarray, timer: Timer,
) -> Row:  # fmt: skip
    row = Row(candidate.name, candidate.precision, batch)
    try:
        starts = range(0, len(images) - batch + 1, batch)
        logits = np.concatenate([infer(images[i : i + batch], tokens[i : i + batch]) for i in starts])
        parity = compare_logits(expected[: len(logits)], logits)
        row = replace(row, parity=parity)
        gate([parity], candidate.precision).require()
        return replace(row, seconds=timer(lambda: infer(images[:batch], tokens[:batch])).seconds)
    except VerificationError as error:
        return replace(row, wrong=True, why=f"not timed: {error}")
    except failures() as error:
        return replace(row, why=reason(error))


def table(rows: Sequence[Row]) -> Table:
    """One line per candidate and batch size; speedups are over the first candidate at the same batch size."""
    columns = [
        "engine", "precision", "batch", "median ms", "p95 ms", "images/s", "x the first", "MiB",
        "max logit error", "mask agreement", "status",
    ]  # fmt: skip
    first = {row.batch: median(row.seconds) for row in rows if row.name == rows[0].name and row.seconds}
    lines = []
    for row in rows:
        times = ["–"] * 5
        if row.seconds:
            middle, late = median(row.seconds), float(np.percentile(row.seconds, 95))
            ratio = f"{first[row.batch] / middle:.2f}" if row.batch in first else "–"
            memory = f"{(row.memory_bytes or 0) / 2**20:.0f}"
            times = [f"{1e3 * middle:.2f}", f"{1e3 * late:.2f}", f"{row.batch / middle:.1f}", ratio, memory]
        parity = ["–"] * 2
        if row.parity is not None:
            parity = [f"{row.parity.max_abs_error:.1e}", f"{row.parity.mask_agreement:.4f}"]
        lines.append([row.name, row.precision, str(row.batch), *times, *parity, cell(row.why) or "ok"])
    return Table("Engines, host to host", columns, lines, texts=2)


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for JSON, with the time of every call."""
    return [
        asdict(row) | {"parity": row.parity.to_dict() if row.parity is not None else None} for row in rows
    ]
