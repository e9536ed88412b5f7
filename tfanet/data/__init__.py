"""RefCOCO and synthetic data: readers, checks, and the model's input tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfanet.lazy import lazy_attributes

if TYPE_CHECKING:
    from tfanet.data.preprocess import tokenize
    from tfanet.data.refer import Expression, ReferDataset
    from tfanet.data.shapes import DEFAULT_ROOT, ensure_shapes, render_pair, write_shapes
    from tfanet.data.transforms import TrainingPairs

__all__ = [
    "DEFAULT_ROOT",
    "Expression",
    "ReferDataset",
    "TrainingPairs",
    "ensure_shapes",
    "render_pair",
    "tokenize",
    "write_shapes",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "DEFAULT_ROOT": "tfanet.data.shapes",
        "Expression": "tfanet.data.refer",
        "ReferDataset": "tfanet.data.refer",
        "TrainingPairs": "tfanet.data.transforms",
        "ensure_shapes": "tfanet.data.shapes",
        "render_pair": "tfanet.data.shapes",
        "tokenize": "tfanet.data.preprocess",
        "write_shapes": "tfanet.data.shapes",
    },
)
