"""Candidates for one problem: checked against a reference result, then timed; a row of the report each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from report import NotAvailable, failures, reason
from timing import Timer
from torch import Tensor

Result = Tensor | tuple[Tensor, ...]
Call = Callable[[], Result]


@dataclass(frozen=True)
class Candidate:
    """One way to compute a case's result."""

    name: str
    prepare: Callable[[], Call]
    """Returns the call to time. Raises `NotAvailable` if this machine cannot run it."""
    tolerance: float
    """Largest relative error (`relative_error`); a candidate with a larger one is not timed."""
    ours: bool = False
    """Whether this is our kernel: the others are compared with it, and it must not fail."""


@dataclass(frozen=True)
class Case:
    """One problem with its reference result and the candidates that compute it."""

    section: str
    size: str
    batch: int
    dtype: str
    inputs: tuple[Tensor, ...]
    reference: Call
    candidates: Sequence[Candidate]
    counted: bool = True
    """Whether to count bytes: every input read once and every output written once."""


@dataclass(frozen=True)
class Row:
    """Measurements of one candidate of one case."""

    section: str
    size: str
    batch: int
    dtype: str
    name: str
    ours: bool = False
    seconds: list[float] = field(default_factory=list)
    """Of every run; empty if `why` has a reason."""
    host_seconds: float = 0.0
    host_bound: bool = False
    moved_bytes: int = 0
    error: float | None = None
    why: str = ""

    @property
    def case(self) -> tuple[str, str, int, str]:
        return self.section, self.size, self.batch, self.dtype

    @property
    def median(self) -> float:
        """Median seconds; NaN if there are none."""
        return median(self.seconds) if self.seconds else math.nan


def measure(case: Case, timer: Timer) -> list[Row]:
    """Check every candidate against the reference and time the correct ones. Returns a row for each."""
    with torch.no_grad():
        try:
            expected = case.reference()
        except failures() as error:
            why = f"the reference failed: {reason(error)}"
            return [row_of(case, candidate, why=why) for candidate in case.candidates]
        return [_measure_one(case, candidate, expected, timer) for candidate in case.candidates]


def _measure_one(case: Case, candidate: Candidate, expected: Result, timer: Timer) -> Row:
    try:
        call = candidate.prepare()
        poison(expected)
        actual = call()
        error = relative_error(actual, expected)
        if not error <= candidate.tolerance:
            return row_of(case, candidate, error=error, why=f"relative error {error:.1e}, not timed")
        moved = sum(t.nbytes for t in (*case.inputs, *tensors(actual))) if case.counted else 0
        del actual
        timing = timer(call)
    except NotAvailable as error:
        return row_of(case, candidate, why=str(error))
    except failures() as error:
        return row_of(case, candidate, why=f"failed: {reason(error)}")
    return row_of(
        case, candidate, seconds=timing.seconds, host_seconds=timing.host_seconds,
        host_bound=timing.host_bound, moved_bytes=moved, error=error,
    )  # fmt: skip


def row_of(case: Case, candidate: Candidate, **values: Any) -> Row:
    return Row(case.section, case.size, case.batch, case.dtype, candidate.name, candidate.ours, **values)


def tensors(result: Result) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def poison(like: Result) -> None:
    """Fill memory that the next call is likely to get with NaN: it may hold an earlier correct result."""
    filled = [torch.full_like(t, math.nan) for t in tensors(like)]
    del filled


def relative_error(actual: Result, expected: Result) -> float:
    """Largest absolute difference over the largest expected value, of the worst tensor; NaN if any is NaN.

    Raises `ValueError` if shapes differ.
    """
    worst = 0.0
    for ours, target in zip(tensors(actual), tensors(expected), strict=True):
        if ours.shape != target.shape:
            raise ValueError(f"a result is {[*ours.shape]}, not {[*target.shape]}")
        error = ((ours.float() - target.float()).abs().max() / target.float().abs().max()).item()
        if math.isnan(error):
            return error
        worst = max(worst, error)
    return worst
