"""The figures of referring image segmentation, by name, each in a stated convention."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tfanet.overlaps import Overlaps
from tfanet_eval.conventions import THRESHOLDS, Convention, convention_named

FIGURES = ("mIoU", "oIoU", *(f"P@{threshold}" for threshold in THRESHOLDS))


class SegmentationMetrics(Overlaps):
    """The overlaps of every sample and the figures of a convention.

    `convention` is a name of `tfanet_eval.conventions.CONVENTIONS` or a `Convention`: it says at which size
    masks are compared, what an empty union counts, and whether P@X is >= or >. `original`, the default, is
    the picture's own size with logits resized bilinearly, IoU 0 for an empty union, and >=.
    """

    def __init__(self, convention: str | Convention = "original") -> None:
        super().__init__()
        self.convention = convention_named(convention) if isinstance(convention, str) else convention

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> float:
        """Add one sample and return its IoU, 0..1.

        `prediction` is `[S, S]` logits (a floating dtype), brought to the convention's size here, or a mask
        `[H, W]` (bool or integer, not 0 is object) that is compared as it is. `truth` is `[H, W]`, not 0 is
        object. `ValueError` when a mask and the truth differ in shape or one of the two is no plane.
        """
        if prediction.ndim != 2 or truth.ndim != 2:
            raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} are not both planes")
        if np.issubdtype(prediction.dtype, np.floating):
            found, wanted = self.convention.masks(prediction, truth)
        elif prediction.shape == truth.shape:
            found, wanted = prediction != 0, truth != 0
        else:
            raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} are not the same [H, W]")
        return self.compare(found, wanted)

    def iou(self, intersection: int, union: int) -> float:
        """As the convention has it."""
        return self.convention.iou(intersection, union)

    def overall(self, intersections: int, unions: int, count: int) -> float:
        """As the convention has it."""
        return self.convention.overall(intersections, unions, count)

    @property
    def last(self) -> tuple[int, int]:
        """Intersection and union of the sample added last, in pixels."""
        return self.counts[-1]

    @classmethod
    def of(cls, counts: Iterable[tuple[int, int]], convention: str | Convention) -> SegmentationMetrics:
        """The metrics of samples given by their intersections and unions."""
        metrics = cls(convention)
        metrics.counts += counts
        return metrics

    def merge(self, other: SegmentationMetrics) -> None:
        """Add the samples of `other`; the result is that of one pass over both, to the last bit.

        `ValueError` when `other` counts in another convention.
        """
        if other.convention != self.convention:
            raise ValueError(f"{self.convention.name} and {other.convention.name} have no common figures")
        self.counts += other.counts

    def __add__(self, other: SegmentationMetrics) -> SegmentationMetrics:
        both = SegmentationMetrics(self.convention)
        both.merge(self)
        both.merge(other)
        return both

    def result(self) -> dict[str, float]:
        """`mIoU` (mean IoU over samples), `oIoU` (all intersections by all unions), `P@0.5` .. `P@0.9`
        (share of samples that reach X), each 0..1, and `count`. `ValueError` when there is no sample."""
        figures = {"mIoU": self.mean_iou(), "oIoU": self.overall_iou()}
        for threshold in THRESHOLDS:
            reached = sum(self.convention.reaches(*pair, threshold) for pair in self.counts)
            figures[f"P@{threshold}"] = reached / len(self)
        return figures | {"count": len(self)}
