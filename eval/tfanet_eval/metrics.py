"""IoU, mIoU, oIoU and P@X of referring image segmentation, in the conventions of published scripts.

    IoU_i = intersection_i / union_i      mIoU = mean of IoU_i      oIoU = sum intersection_i / sum union_i
    P@X   = fraction of samples with IoU_i >= X

The same masks give different values in different repositories, and "IoU" is a mean here and a ratio of sums
there. Each `Convention` is what one published evaluation script does, read from its source: at which size
masks are compared, how logits get there, what an empty union counts, and whether P@X includes X.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from tfanet.data.preprocess import logits_to_size, resize_mask
from tfanet.deprecation import renamed_arguments
from tfanet.errors import UserError
from tfanet.iou import intersection_union, iou, mean_iou

if TYPE_CHECKING:
    from tfanet.data.refer import Expression
    from tfanet_eval.results import Record

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
METRICS = ("mIoU", "oIoU", *(f"P@{threshold}" for threshold in THRESHOLDS))
"""Names of the metrics, all 0..1."""

_FLOAT32_THRESHOLDS = tuple(float(np.float32(threshold)) for threshold in THRESHOLDS)


@dataclass(frozen=True)
class Convention:
    """One way to compare a prediction with its target."""

    name: str
    side: int | None
    """Masks are compared at `side` x `side` pixels, targets resized to that by nearest neighbour; None is the
    image's own size."""
    resize: Literal["bilinear", "nearest", "bicubic"]
    """How logits (with `probabilities`: their sigmoids) are resized to that from the model's S x S."""
    probability: float
    """A pixel is foreground where the sigmoid of its logit is above this, 0..1."""
    probabilities: bool
    """Whether the sigmoid is taken before resizing rather than after."""
    epsilon: float
    """Added to every union; without it the IoU of an empty union is 0."""
    bounds: tuple[float, ...]
    """What the IoU is compared with for each of `THRESHOLDS`; CRIS rounds them to FP32."""
    inclusive: bool
    """P@X counts IoU >= X, otherwise IoU > X."""
    first_expression: bool
    """Only the first expression of each reference is a sample, otherwise every expression."""
    prints: tuple[str, ...]
    """The metrics that the script itself prints; the others are computed here in its convention."""

    def masks(self, logits: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits float `[S, S]` and target `[H, W]` (nonzero: foreground) as two bool masks of equal size."""
        if self.side is not None:
            target = resize_mask(target != 0, self.side)
        values = _sigmoid(logits) if self.probabilities else logits
        if values.shape != target.shape:
            values = _RESIZE[self.resize](values, *target.shape)
        return values > (self.probability if self.probabilities else _logit(self.probability)), target != 0

    def iou(self, intersection: int, union: int) -> float:
        """IoU of one sample, 0..1, from its pixel counts."""
        return iou(intersection, union + self.epsilon)

    def overall(self, intersections: float, unions: float, count: float) -> float:
        """oIoU, 0..1, from the sums over `count` samples; ReMamber adds epsilon to the mean union."""
        return iou(intersections, unions + self.epsilon * count)

    def reaches(self, intersection: int, union: int, threshold: float) -> bool:
        """Whether a sample counts for P@`threshold`; `threshold` is one of `THRESHOLDS`."""
        bound = self.bounds[THRESHOLDS.index(threshold)]
        if not self.inclusive:
            return self.iou(intersection, union) > bound
        if self.epsilon:
            return self.iou(intersection, union) >= bound
        # In integers, because the quotient of an IoU of exactly 0.6 may round to less than 0.6.
        return union > 0 and 10 * intersection >= round(10 * threshold) * union

    def samples(self, expressions: Sequence[Expression]) -> list[int]:
        """Indices of the expressions that are samples."""
        if not self.first_expression:
            return list(range(len(expressions)))
        first: dict[int, int] = {}
        for index, expression in enumerate(expressions):
            first.setdefault(expression.ref_id, index)
        return list(first.values())


_ALL = ("mIoU", "oIoU", "P@X")
_ORIGINAL = Convention(
    "original", side=None, resize="bilinear", probability=0.5, probabilities=False, epsilon=0.0,
    bounds=THRESHOLDS, inclusive=True, first_expression=False, prints=_ALL,
)  # fmt: skip
_LAVT = replace(_ORIGINAL, name="480", side=480)
_REMAMBER = Convention(
    "remamber", side=None, resize="nearest", probability=0.5, probabilities=False, epsilon=1e-6,
    bounds=THRESHOLDS, inclusive=True, first_expression=False, prints=("mIoU", "oIoU"),
)  # fmt: skip
_CRIS = Convention(
    "cris", side=None, resize="bicubic", probability=0.35, probabilities=True, epsilon=1e-6,
    bounds=_FLOAT32_THRESHOLDS, inclusive=False, first_expression=False, prints=("mIoU", "P@X"),
)  # fmt: skip
_CRIS_FIRST = replace(_CRIS, name="cris-first", first_expression=True)
CONVENTIONS = {c.name: c for c in (_ORIGINAL, _LAVT, _REMAMBER, _CRIS, _CRIS_FIRST)}


def convention_named(name: str) -> Convention:
    """The convention called `name`; `UserError` for an unknown name."""
    if name not in CONVENTIONS:
        raise UserError(f"unknown convention {name!r}; known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


class SegmentationMetrics:
    """Intersection and union of every sample, in whole pixels; metrics are computed from them at the end.

    `convention` is a name in `CONVENTIONS` or a `Convention`. `original`, the default, compares at the
    image's own size with logits resized bilinearly, an IoU of 0 for an empty union, and P@X including X.
    """

    def __init__(self, convention: str | Convention = "original") -> None:
        self.convention = convention_named(convention) if isinstance(convention, str) else convention
        self.counts: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.counts)

    @renamed_arguments(truth="target")
    def update(self, prediction: np.ndarray, target: np.ndarray) -> float:
        """Add one sample and return its IoU, 0..1.

        Args:
            prediction: logits `[S, S]` (a floating dtype), resized here to the convention's size, or a mask
                `[H, W]` (bool or integer, nonzero is foreground) that is compared as it is.
            target: `[H, W]`, nonzero is foreground.

        Raises `ValueError` if one of them is not 2-D, or a mask and the target differ in shape.
        """
        if prediction.ndim != 2 or target.ndim != 2:
            raise ValueError(f"prediction {prediction.shape} and target {target.shape} are not both 2-D")
        if np.issubdtype(prediction.dtype, np.floating):
            masks = self.convention.masks(prediction, target)
        elif prediction.shape == target.shape:
            masks = prediction != 0, target != 0
        else:
            raise ValueError(f"prediction {prediction.shape} and target {target.shape} differ in shape")
        self.counts.append(intersection_union(*masks))
        return self.convention.iou(*self.last)

    @property
    def last(self) -> tuple[int, int]:
        """Intersection and union, in pixels, of the sample added last."""
        return self.counts[-1]

    @classmethod
    def of(cls, counts: Iterable[tuple[int, int]], convention: str | Convention) -> SegmentationMetrics:
        """The metrics of samples given by their intersections and unions."""
        metrics = cls(convention)
        metrics.counts += counts
        return metrics

    def merge(self, other: SegmentationMetrics) -> None:
        """Add the samples of `other`; the result equals one pass over both, to the last bit.

        Raises `ValueError` if `other` has another convention.
        """
        if other.convention != self.convention:
            raise ValueError(f"cannot merge metrics of {self.convention.name} and {other.convention.name}")
        self.counts += other.counts

    def __add__(self, other: SegmentationMetrics) -> SegmentationMetrics:
        both = SegmentationMetrics(self.convention)
        both.merge(self)
        both.merge(other)
        return both

    def result(self) -> dict[str, float]:
        """`METRICS`, each 0..1, and `count`; `ValueError` if there are no samples."""
        convention = self.convention
        epsilon_counts = [(intersection, union + convention.epsilon) for intersection, union in self.counts]
        metrics = {"mIoU": mean_iou(epsilon_counts)}
        intersections, unions = (sum(column) for column in zip(*self.counts, strict=True))
        metrics["oIoU"] = convention.overall(intersections, unions, len(self))
        for threshold in THRESHOLDS:
            reached = sum(convention.reaches(*pair, threshold) for pair in self.counts)
            metrics[f"P@{threshold}"] = reached / len(self)
        return metrics | {"count": len(self)}


RESAMPLES = 2000
LEVEL = 0.95
_SEED = 0

Interval = tuple[float, float]


@dataclass(frozen=True)
class Resampled:
    """The metrics of one evaluation in every bootstrap resample; equal expressions give equal resamples."""

    values: dict[str, np.ndarray]
    """float64 `[RESAMPLES]`, 0..1, by the names in `METRICS`."""

    def interval(self, metric: str) -> Interval:
        """The bounds, 0..1, between which `LEVEL` of the resamples lie."""
        return _bounds(self.values[metric])

    def difference(self, other: Resampled, metric: str) -> Interval:
        """The interval of this evaluation's metric minus the other's, resample by resample."""
        return _bounds(self.values[metric] - other.values[metric])


def resample(records: Sequence[Record], convention: Convention) -> Resampled:
    """Bootstrap the metrics with `RESAMPLES` resamples and a fixed seed; `ValueError` without records.

    Expressions of one image are not independent, so images are drawn with replacement, each with all of its
    expressions: the cluster bootstrap with percentile intervals (Efron and Tibshirani, 1993).
    """
    if not records:
        raise ValueError("no samples")
    _, image = np.unique([f"{record.split} {record.image}" for record in records], return_inverse=True)
    counts = [(record.intersection, record.union) for record in records]
    columns = [[1.0, convention.iou(*pair), *pair] for pair in counts]
    hits = [[convention.reaches(*pair, threshold) for threshold in THRESHOLDS] for pair in counts]
    samples = np.hstack([np.array(columns, dtype=np.float64), np.array(hits, dtype=np.float64)])
    images = int(image.max()) + 1
    sums = np.zeros((images, samples.shape[1]))
    np.add.at(sums, image, samples)
    drawn = np.random.default_rng(_SEED).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    number, ious, intersections, unions, *reached = (drawn @ sums).T
    overall = [convention.overall(*row) for row in zip(intersections, unions, number, strict=True)]
    precisions = (column / number for column in reached)
    return Resampled(dict(zip(METRICS, (ious / number, np.array(overall), *precisions), strict=True)))


def _bounds(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    import torch

    return torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32)).sigmoid().numpy()


def _nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """`values` `[S, S]` as `[height, width]`: each pixel takes the value at its upper left corner."""
    rows = np.arange(height) * values.shape[0] // height
    columns = np.arange(width) * values.shape[1] // width
    return values[rows][:, columns]


def _bicubic(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cubic convolution with a = -0.75, as OpenCV and PyTorch have it."""
    import torch

    image = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    resized = torch.nn.functional.interpolate(image, (height, width), mode="bicubic", align_corners=False)
    return resized[0, 0].numpy()


_RESIZE = {"bilinear": logits_to_size, "nearest": _nearest, "bicubic": _bicubic}
