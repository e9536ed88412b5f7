"""The figures of referring image segmentation, by name, in one stated convention.

`original`: the model's logits are resized (bilinear) to the picture's own size, the mask is logits > 0, and
every sentence is one sample. ReMamber evaluates at this size too; LAVT compares at 480 x 480 with the truth
resized instead, so its figures differ slightly for the same model.
"""

from __future__ import annotations

import math

import numpy as np

CONVENTION = "original"
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


class SegmentationMetrics:
    """Intersection and union of every sample, in whole pixels; figures are made of them only at the end.

    An empty union (no object in either mask) counts as IoU 0, as in LAVT and ReMamber. P@X counts IoU >= X,
    as LAVT; CRIS and DETRIS count IoU > X.
    """

    def __init__(self) -> None:
        self._intersections: list[int] = []
        self._unions: list[int] = []

    def __len__(self) -> int:
        return len(self._unions)

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> float:
        """Add one sample and return its IoU, 0..1.

        `prediction` is `[H, W]` at the picture's own size: logits (a floating dtype) or a mask (bool or
        integer, not 0 is object). `truth` is `[H, W]`, not 0 is object. `ValueError` when the shapes differ.
        """
        if prediction.shape != truth.shape or truth.ndim != 2:
            raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} are not the same [H, W]")
        found = prediction > 0 if np.issubdtype(prediction.dtype, np.floating) else prediction != 0
        wanted = truth != 0
        intersection = int(np.count_nonzero(found & wanted))
        union = int(np.count_nonzero(found | wanted))
        self._intersections.append(intersection)
        self._unions.append(union)
        return _iou(intersection, union)

    def merge(self, other: SegmentationMetrics) -> None:
        """Add the samples of `other`; the result is that of one pass over both, to the last bit."""
        self._intersections += other._intersections
        self._unions += other._unions

    def __add__(self, other: SegmentationMetrics) -> SegmentationMetrics:
        both = SegmentationMetrics()
        both.merge(self)
        both.merge(other)
        return both

    def result(self) -> dict[str, float]:
        """`mIoU` (mean IoU over samples), `oIoU` (all intersections by all unions), `P@0.5` .. `P@0.9`
        (share of samples with IoU >= X), each 0..1, and `count`. `ValueError` when there is no sample."""
        count = len(self)
        if count == 0:
            raise ValueError("there are no figures of no sample")
        pairs = list(zip(self._intersections, self._unions, strict=True))
        figures = {
            "mIoU": math.fsum(_iou(*pair) for pair in pairs) / count,
            "oIoU": _iou(sum(self._intersections), sum(self._unions)),
        }
        for threshold in THRESHOLDS:
            tenths = round(10 * threshold)
            hits = sum(union > 0 and 10 * intersection >= tenths * union for intersection, union in pairs)
            figures[f"P@{threshold}"] = hits / count
        return figures | {"count": count}


def _iou(intersection: int, union: int) -> float:
    return intersection / union if union else 0.0
