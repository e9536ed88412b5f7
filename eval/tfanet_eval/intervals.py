"""Bootstrap intervals of the figures: how far they would move with other pictures of the same kind.

Sentences of one picture are not independent, so pictures are drawn with replacement, each with all of its
sentences (the cluster bootstrap; Efron and Tibshirani 1993, percentile intervals).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfanet_eval.conventions import THRESHOLDS, Convention
from tfanet_eval.metrics import FIGURES
from tfanet_eval.results import Record

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0

Interval = tuple[float, float]


@dataclass(frozen=True)
class Resampled:
    """The figures of one evaluation in every resample; two of the same expressions are drawn alike."""

    values: dict[str, np.ndarray]
    """float64 `[RESAMPLES]`, 0..1, by the names in `FIGURES`."""

    def interval(self, figure: str) -> Interval:
        """The bounds, 0..1, between which `LEVEL` of the resamples lie."""
        return _bounds(self.values[figure])

    def difference(self, other: Resampled, figure: str) -> Interval:
        """The bounds of this evaluation's figure less the other's, resample by resample."""
        return _bounds(self.values[figure] - other.values[figure])


def resample(records: Sequence[Record], convention: Convention) -> Resampled:
    """Draw pictures `RESAMPLES` times, with a fixed seed; `ValueError` without records."""
    if not records:
        raise ValueError("there is no interval of no sample")
    _, picture = np.unique([f"{record.split} {record.image}" for record in records], return_inverse=True)
    counts = [(record.intersection, record.union) for record in records]
    columns = [[1.0, convention.iou(*pair), *pair] for pair in counts]
    hits = [[convention.reaches(*pair, threshold) for threshold in THRESHOLDS] for pair in counts]
    samples = np.hstack([np.array(columns, dtype=np.float64), np.array(hits, dtype=np.float64)])
    pictures = int(picture.max()) + 1
    sums = np.zeros((pictures, samples.shape[1]))
    np.add.at(sums, picture, samples)
    drawn = np.random.default_rng(SEED).multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)
    number, ious, intersections, unions, *reached = (drawn @ sums).T
    overall = [convention.overall(*row) for row in zip(intersections, unions, number, strict=True)]
    shares = (column / number for column in reached)
    return Resampled(dict(zip(FIGURES, (ious / number, np.array(overall), *shares), strict=True)))


def _bounds(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
