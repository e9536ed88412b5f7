"""RefCOCO and its synthetic likeness: reading, making, and turning pairs into the model's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfanet.data.refer import Expression, ReferDataset
    from tfanet.data.shapes import DEFAULT_ROOT, ensure_shapes, render_pair, write_shapes
    from tfanet.data.transforms import TrainingPairs, tokenize

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

_HOMES = {
    "DEFAULT_ROOT": "tfanet.data.shapes",
    "Expression": "tfanet.data.refer",
    "ReferDataset": "tfanet.data.refer",
    "TrainingPairs": "tfanet.data.transforms",
    "ensure_shapes": "tfanet.data.shapes",
    "render_pair": "tfanet.data.shapes",
    "tokenize": "tfanet.data.transforms",
    "write_shapes": "tfanet.data.shapes",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that PyTorch is loaded only where tensors are made."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'tfanet.data' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
