"""The precision that every operation computes in, whatever its tensors are stored in."""

from __future__ import annotations

import torch
from torch import Tensor


def accum_dtype(x: Tensor) -> torch.dtype:
    """FP32 for half tensors and FP32; FP64 stays FP64, so that gradients can be checked."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
