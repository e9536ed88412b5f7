"""Where the Triton kernels serve CUDA tensors; elsewhere the vectorised paths do."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def use_triton(x: Tensor) -> bool:
    """Whether an operation on `x` goes to its Triton kernels: not FP64, nothing empty, not without Triton."""
    return x.dtype != torch.float64 and x.numel() > 0 and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton is installed; it comes with PyTorch's CUDA builds for Linux."""
    return find_spec("triton") is not None
