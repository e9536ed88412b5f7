"""Parity of a deployed model with the PyTorch reference: metrics, tolerances, and the check of both.

`gate` is the parity check that export, evaluation and benchmarks share.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfanet.deprecation import renamed_property
from tfanet.errors import VerificationError

WORST = 5


@dataclass(frozen=True)
class Tolerance:
    """Bounds for one precision; None if a metric is reported but not bounded."""

    max_logit_error: float | None
    """Largest absolute difference of a logit."""
    max_relative_error: float | None
    """`max_logit_error` in standard deviations of the reference's logits: detects another model."""
    mask_agreement: float
    """Smallest mean IoU of the two masks, 0..1."""
    metric_drop: float
    """Largest absolute difference of the two models' mIoU, and of their oIoU, on the ground truth, 0..1."""


TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(1e-3, max_relative_error=None, mask_agreement=0.999, metric_drop=0.005),
    "fp16": Tolerance(None, max_relative_error=0.1, mask_agreement=0.99, metric_drop=0.005),
}


@dataclass(frozen=True)
class ParityMetrics:
    """The result of `compare_logits`, as sums: `a + b` is the result for both sets of pairs."""

    pairs: int = 0
    pixels: int = 0
    flipped: int = 0
    """Pixels where the two masks differ."""
    max_abs_error: float = 0.0
    """Infinite if a logit of either side is NaN or infinite."""
    sum_abs_error: float = 0.0
    sum_agreement: float = 0.0
    sum_reference: float = 0.0
    sum_reference_squares: float = 0.0

    @property
    def relative_error(self) -> float:
        """`max_abs_error` in standard deviations of the reference's logits; infinite if they are constant."""
        if not self.pixels:
            return math.nan
        if self.max_abs_error == 0:
            return 0.0
        mean = self.sum_reference / self.pixels
        variance = self.sum_reference_squares / self.pixels - mean**2
        return self.max_abs_error / math.sqrt(variance) if variance > 0 else math.inf

    @property
    def mean_abs_error(self) -> float:
        return self.sum_abs_error / self.pixels if self.pixels else math.nan

    @property
    def mask_agreement(self) -> float:
        """Mean over pairs of the IoU of the two masks (logits > 0); 1 for two empty masks."""
        return self.sum_agreement / self.pairs if self.pairs else math.nan

    @property
    def pixels_flipped(self) -> float:
        """Share of pixels where the masks differ, 0..1."""
        return self.flipped / self.pixels if self.pixels else math.nan

    def __add__(self, other: ParityMetrics) -> ParityMetrics:
        return ParityMetrics(
            pairs=self.pairs + other.pairs,
            pixels=self.pixels + other.pixels,
            flipped=self.flipped + other.flipped,
            max_abs_error=max(self.max_abs_error, other.max_abs_error),
            sum_abs_error=self.sum_abs_error + other.sum_abs_error,
            sum_agreement=self.sum_agreement + other.sum_agreement,
            sum_reference=self.sum_reference + other.sum_reference,
            sum_reference_squares=self.sum_reference_squares + other.sum_reference_squares,
        )

    def to_dict(self) -> dict[str, Any]:
        """The metrics for a sidecar or a report; infinite and undefined values become None."""
        metrics = {
            "max_abs_error": self.max_abs_error,
            "relative_error": self.relative_error,
            "mean_abs_error": self.mean_abs_error,
            "mask_agreement": self.mask_agreement,
            "pixels_flipped": self.pixels_flipped,
        }
        return {"pairs": self.pairs} | {k: v if math.isfinite(v) else None for k, v in metrics.items()}


def compare_logits(reference: np.ndarray, candidate: np.ndarray) -> ParityMetrics:
    """Parity of mask logits `[B, S, S]`, or `[S, S]`, with those of the reference.

    Raises `VerificationError` if the shapes differ.
    """
    if reference.shape != candidate.shape or reference.ndim not in (2, 3):
        raise VerificationError(
            f"logits of shape {candidate.shape} cannot be compared with the reference's {reference.shape}"
        )
    if reference.size == 0:
        return ParityMetrics()
    size = reference.shape[-2:]
    left, right = reference.reshape(-1, *size), candidate.reshape(-1, *size)
    finite = np.isfinite(left).all() and np.isfinite(right).all()
    error = np.abs(left.astype(np.float64) - right.astype(np.float64)) if finite else np.array(np.inf)
    left_mask, right_mask = left > 0, right > 0
    union = np.logical_or(left_mask, right_mask).sum((1, 2))
    intersection = np.logical_and(left_mask, right_mask).sum((1, 2))
    return ParityMetrics(
        pairs=len(left),
        pixels=left.size,
        flipped=int((left_mask != right_mask).sum()),
        max_abs_error=float(error.max()),
        sum_abs_error=float(error.sum()),
        sum_reference=float(left.sum(dtype=np.float64)),
        sum_reference_squares=float(np.square(left, dtype=np.float64).sum()),
        sum_agreement=float(np.where(union == 0, 1.0, intersection / np.maximum(union, 1)).sum()),
    )


@dataclass(frozen=True)
class Gate:
    """The result of the parity check; see `gate`."""

    precision: str
    metrics: ParityMetrics
    """Of all pairs together."""
    failures: tuple[str, ...]
    """Every bound that is exceeded, with the value; empty if the check passes."""
    worst: tuple[int, ...]
    """Indices of the at most `WORST` pairs with the largest errors, the largest first."""

    figures = renamed_property("figures", "metrics")

    def require(self, what: str = "") -> None:
        """Raise `VerificationError` with `what` and the first failure unless the check passes."""
        if self.failures:
            raise VerificationError(f"{what}: {self.failures[0]}" if what else self.failures[0])


def gate(pairs: Sequence[ParityMetrics], precision: str, drops: Mapping[str, float] | None = None) -> Gate:
    """Check the parity of `pairs`, one `compare_logits` each, against `TOLERANCES[precision]`.

    Args:
        drops: the reference's metrics minus the engine's, 0..1, by name, if the ground truth is known.

    The check also fails for logits that are not finite, and without pairs.
    """
    metrics = functools.reduce(operator.add, pairs, ParityMetrics())
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i].mask_agreement, -pairs[i].max_abs_error))
    order.sort(key=lambda i: math.isfinite(pairs[i].max_abs_error))
    failures = tuple(_failures(metrics, TOLERANCES[precision], precision, drops or {}))
    return Gate(precision, metrics, failures, tuple(order[:WORST]))


def _failures(
    metrics: ParityMetrics, bound: Tolerance, precision: str, drops: Mapping[str, float]
) -> Iterator[str]:
    if metrics.pairs == 0:
        yield "no pair was compared with the reference"
        return
    if not math.isfinite(metrics.max_abs_error):
        yield "some logits are NaN or infinite"
        return
    pairs = f"over {metrics.pairs} pairs"
    if bound.max_logit_error is not None and metrics.max_abs_error > bound.max_logit_error:
        yield (
            f"max logit error {metrics.max_abs_error:.3g} {pairs} is above the {precision} bound of "
            f"{bound.max_logit_error:g}"
        )
    if bound.max_relative_error is not None and not metrics.relative_error <= bound.max_relative_error:
        yield (
            f"max logit error {metrics.max_abs_error:.3g} {pairs} is {metrics.relative_error:.3g} standard "
            f"deviations of the reference's logits, above the {precision} bound of "
            f"{bound.max_relative_error:g}"
        )
    if metrics.mask_agreement < bound.mask_agreement:
        yield (
            f"mask agreement {metrics.mask_agreement:.4f} {pairs} is below the {precision} bound of "
            f"{bound.mask_agreement:g}"
        )
    for name, drop in drops.items():
        if not abs(drop) <= bound.metric_drop:
            yield (
                f"{name} differs by {drop:.4f} from the reference's, more than the {precision} bound of "
                f"{bound.metric_drop:g}"
            )
