"""TFANet: three-stage image-text feature alignment for referring image segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfanet.checkpoint import load_model
    from tfanet.config import PRESETS, TFANetConfig
    from tfanet.model import TFANet, build_model

__all__ = ["PRESETS", "TFANet", "TFANetConfig", "build_model", "load_model"]

_HOMES = {
    "PRESETS": "tfanet.config",
    "TFANet": "tfanet.model",
    "TFANetConfig": "tfanet.config",
    "build_model": "tfanet.model",
    "load_model": "tfanet.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import tfanet` (and every `--help`) does not import torch."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'tfanet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
