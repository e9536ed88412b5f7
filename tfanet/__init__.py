"""TFANet: three-stage image-text feature alignment for referring image segmentation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tfanet.lazy import lazy_attributes

if TYPE_CHECKING:
    from tfanet.checkpoint import load_model
    from tfanet.config import PRESETS, TFANetConfig
    from tfanet.model import TFANet, build_model

# PyTorch reads this at its first allocation. Allocations of 2 MB and more use huge pages where the system has
# them, so large feature maps on the CPU cause few page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__all__ = ["PRESETS", "TFANet", "TFANetConfig", "build_model", "load_model"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "PRESETS": "tfanet.config",
        "TFANet": "tfanet.model",
        "TFANetConfig": "tfanet.config",
        "build_model": "tfanet.model",
        "load_model": "tfanet.checkpoint",
    },
)
