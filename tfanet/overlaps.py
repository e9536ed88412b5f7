"""Intersection and union of masks, sample by sample, and the mean and the overall IoU that they come to."""

from __future__ import annotations

import math

import numpy as np

from tfanet.data.masks import overlap


def quotient(part: float, whole: float) -> float:
    """`part / whole`; 0 where the whole is 0."""
    return part / whole if whole else 0.0


class Overlaps:
    """Intersection and union of every sample, in whole pixels; figures are made of them only at the end."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.counts)

    def compare(self, found: np.ndarray, wanted: np.ndarray) -> float:
        """Add a sample by its two bool masks of one shape and return its IoU, 0..1."""
        return self.add(*overlap(found, wanted))

    def add(self, intersection: int, union: int) -> float:
        """Add one sample by its pixel counts and return its IoU, 0..1."""
        self.counts.append((intersection, union))
        return self.iou(intersection, union)

    def iou(self, intersection: int, union: int) -> float:
        """IoU, 0..1, of one sample; 0 where both masks are empty."""
        return quotient(intersection, union)

    def overall(self, intersections: int, unions: int, count: int) -> float:
        """oIoU, 0..1, of the sums over `count` samples."""
        return self.iou(intersections, unions)

    def mean_iou(self) -> float:
        """The mean IoU of the samples, 0..1, whatever their order; `ValueError` when there is none."""
        if not self.counts:
            raise ValueError("there are no figures of no sample")
        return math.fsum(self.iou(*pair) for pair in self.counts) / len(self)

    def overall_iou(self) -> float:
        """All intersections by all unions, 0..1; `ValueError` when there is no sample."""
        if not self.counts:
            raise ValueError("there are no figures of no sample")
        intersections, unions = map(sum, zip(*self.counts, strict=True))
        return self.overall(intersections, unions, len(self))
