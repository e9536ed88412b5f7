"""The conventions in which the field counts: how a mask is made of logits, and figures of pixel counts.

The same masks give different figures in different repositories, and the same name (IoU) means a mean here and
a quotient of sums there. Each convention below is what one evaluation script does, read from its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from tfanet.data.images import logits_to_size, resize_mask
from tfanet.errors import UserError
from tfanet.overlaps import quotient

if TYPE_CHECKING:
    from tfanet.data.refer import Expression

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_SINGLE = tuple(float(np.float32(threshold)) for threshold in THRESHOLDS)


@dataclass(frozen=True)
class Convention:
    """One way to compare a prediction with the truth."""

    name: str
    side: int | None
    """Masks are compared at `side` x `side` pixels, the truth resized to it by the nearest pixel; None
    compares them at the picture's own size."""
    resize: Literal["bilinear", "nearest", "bicubic"]
    """How the logits (with `probabilities`: their sigmoids) come to that size, from the model's S x S."""
    probability: float
    """A pixel is the object's where the sigmoid of its logit is above this, 0..1."""
    probabilities: bool
    """Whether the sigmoid is taken before resizing rather than after."""
    epsilon: float
    """Added to every union; without it an empty union has IoU 0."""
    bounds: tuple[float, ...]
    """What the IoU is compared with for each of `THRESHOLDS`; FP32 roundings of them in CRIS."""
    inclusive: bool
    """P@X counts IoU >= X, otherwise IoU > X."""
    first_sentence: bool
    """Only the first sentence of each reference is a sample, otherwise every sentence."""
    prints: tuple[str, ...]
    """The figures that the script itself prints; the others are ours, counted in its way."""

    def masks(self, logits: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits float `[S, S]` and truth `[H, W]` (not 0 is object) as two bool masks of one size."""
        if self.side is not None:
            truth = resize_mask(truth != 0, self.side)
        values = _sigmoid(logits) if self.probabilities else logits
        if values.shape != truth.shape:
            values = _RESIZE[self.resize](values, *truth.shape)
        return values > (self.probability if self.probabilities else _logit(self.probability)), truth != 0

    def iou(self, intersection: int, union: int) -> float:
        """IoU, 0..1, of one sample's pixel counts."""
        return quotient(intersection, union + self.epsilon)

    def overall(self, intersections: int, unions: int, count: int) -> float:
        """oIoU, 0..1, of the sums over `count` samples; ReMamber adds its epsilon to the mean union."""
        return quotient(intersections, unions + self.epsilon * count)

    def reaches(self, intersection: int, union: int, threshold: float) -> bool:
        """Whether a sample counts for P@`threshold`."""
        bound = self.bounds[THRESHOLDS.index(threshold)]
        if not self.inclusive:
            return self.iou(intersection, union) > bound
        if self.epsilon:
            return self.iou(intersection, union) >= bound
        return union > 0 and 10 * intersection >= round(10 * threshold) * union

    def samples(self, expressions: Sequence[Expression]) -> list[int]:
        """The indices of the expressions that are samples."""
        if not self.first_sentence:
            return list(range(len(expressions)))
        first: dict[int, int] = {}
        for index, expression in enumerate(expressions):
            first.setdefault(expression.ref_id, index)
        return list(first.values())


_ALL = ("mIoU", "oIoU", "P@X")
_ORIGINAL = Convention(
    "original", side=None, resize="bilinear", probability=0.5, probabilities=False, epsilon=0.0,
    bounds=THRESHOLDS, inclusive=True, first_sentence=False, prints=_ALL,
)  # fmt: skip
_LAVT = Convention(
    "480", side=480, resize="bilinear", probability=0.5, probabilities=False, epsilon=0.0,
    bounds=THRESHOLDS, inclusive=True, first_sentence=False, prints=_ALL,
)  # fmt: skip
_REMAMBER = Convention(
    "remamber", side=None, resize="nearest", probability=0.5, probabilities=False, epsilon=1e-6,
    bounds=THRESHOLDS, inclusive=True, first_sentence=False, prints=("mIoU", "oIoU"),
)  # fmt: skip
_CRIS = Convention(
    "cris", side=None, resize="bicubic", probability=0.35, probabilities=True, epsilon=1e-6,
    bounds=_SINGLE, inclusive=False, first_sentence=False, prints=("mIoU", "P@X"),
)  # fmt: skip
_CRIS_FIRST = Convention(
    "cris-first", side=None, resize="bicubic", probability=0.35, probabilities=True, epsilon=1e-6,
    bounds=_SINGLE, inclusive=False, first_sentence=True, prints=("mIoU", "P@X"),
)  # fmt: skip
CONVENTIONS = {c.name: c for c in (_ORIGINAL, _LAVT, _REMAMBER, _CRIS, _CRIS_FIRST)}


def convention_named(name: str) -> Convention:
    """The convention called `name`; `UserError` when there is none."""
    if name not in CONVENTIONS:
        raise UserError(f"unknown convention {name!r}; known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    import torch

    return torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32)).sigmoid().numpy()


def _nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """`values` `[S, S]` as `[height, width]`: each takes the pixel that its upper left corner falls into."""
    rows = np.arange(height) * values.shape[0] // height
    columns = np.arange(width) * values.shape[1] // width
    return values[rows][:, columns]


def _bicubic(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cubic convolution with a = -0.75, as OpenCV and PyTorch have it."""
    import torch

    picture = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    resized = torch.nn.functional.interpolate(picture, (height, width), mode="bicubic", align_corners=False)
    return resized[0, 0].numpy()


_RESIZE = {"bilinear": logits_to_size, "nearest": _nearest, "bicubic": _bicubic}
