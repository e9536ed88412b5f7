"""Intersection, union and IoU of masks, for training, export and evaluation.

`tfanet_eval.metrics` has mIoU, oIoU and P@X in the conventions of published evaluation scripts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def intersection_union(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Intersection and union, in pixels, of two bool masks of the same shape."""
    intersection = int(np.count_nonzero(prediction & target))
    return intersection, int(np.count_nonzero(prediction)) + int(np.count_nonzero(target)) - intersection


def iou(intersection: float, union: float) -> float:
    """Intersection over union, 0..1; 0 where the union is empty."""
    return intersection / union if union else 0.0


def mean_iou(counts: Sequence[tuple[float, float]]) -> float:
    """mIoU, 0..1: the mean IoU of samples given by intersection and union, independent of their order.

    Raises `ValueError` if there are no samples.
    """
    _require_samples(counts)
    return math.fsum(iou(*pair) for pair in counts) / len(counts)


def overall_iou(counts: Sequence[tuple[float, float]]) -> float:
    """oIoU, 0..1: the sum of all intersections over the sum of all unions.

    Raises `ValueError` if there are no samples.
    """
    _require_samples(counts)
    return iou(*(sum(column) for column in zip(*counts, strict=True)))


def _require_samples(counts: Sequence[tuple[float, float]]) -> None:
    if not counts:
        raise ValueError("no samples")
