"""The compiled CPU kernel of `cross_selective_scan`, one library for PyTorch and for ONNX Runtime.

`csrc/` is compiled when the package is installed, where there is a C++ compiler; without one everything runs
all the same, slower. Any program with ONNX Runtime may register `library()` as a library of custom
operations: our ONNX files then run the kernel in the place of the function body that they carry.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

MAX_STATES = 16
SWITCH = "TFANET_NATIVE"
"""Environment variable; 0 keeps the library out."""


@cache
def library() -> Path | None:
    """The compiled library; None where it was not built or `TFANET_NATIVE` is 0."""
    spec = find_spec("tfanet.ops._native")
    if spec is None or spec.origin is None or os.environ.get(SWITCH) == "0":
        return None
    return Path(spec.origin)


def supported(x: Tensor, states: int) -> bool:
    """Whether the kernel takes a scan of `x` with so many states: on the CPU, not FP64, not empty."""
    return (
        x.device.type == "cpu"
        and x.dtype != torch.float64
        and x.numel() > 0
        and 1 <= states <= MAX_STATES
        and _kernel() is not None
    )


def cross_selective_scan(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """`tfanet.ops.cross_selective_scan` for what is `supported`; shapes there, the result FP32."""
    kernel = _kernel()
    assert kernel is not None
    inputs = [t.float().contiguous() for t in (x, p, dt_weight, A, D, delta_bias)]
    y = torch.empty(x.shape, dtype=torch.float32)
    pointers = [t.data_ptr() for t in (*inputs, y)]
    if kernel(*pointers, *x.shape, dt_weight.shape[1], A.shape[1], torch.get_num_threads()):
        raise MemoryError("not enough memory for the scan")
    return y


@cache
def _kernel() -> ctypes._NamedFuncPointer | None:
    path = library()
    if path is None:
        return None
    kernel = ctypes.CDLL(str(path)).tfanet_cross_selective_scan
    kernel.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 7
    kernel.restype = ctypes.c_int
    return kernel
