"""The compiled CPU kernels of the scans: `cross_selective_scan`, and the recurrence with its gradients.

`csrc/` is compiled when the package is installed, where there is a C++ compiler; without one everything runs
all the same, slower. One library serves PyTorch and ONNX Runtime: any program with ONNX Runtime may register
`library()` as a library of custom operations, and our ONNX files then run the 2-D scan's kernel in the place
of the function body that they carry.
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
    return _takes(x, states) and x.dtype != torch.float64 and _kernel("cross_selective_scan") is not None


def scans(u: Tensor, states: int) -> bool:
    """Whether `scan_into` and `scan_gradients` take `u` and so many states: on the CPU, FP32, not empty."""
    return _takes(u, states) and u.dtype == torch.float32 and _kernel("scan_gradients") is not None


def cross_selective_scan(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """`tfanet.ops.cross_selective_scan` for what is `supported`; shapes there, the result FP32."""
    inputs = [t.float().contiguous() for t in (x, p, dt_weight, A, D, delta_bias)]
    y = torch.empty(x.shape, dtype=torch.float32)
    _call("cross_selective_scan", [*inputs, y], [*x.shape, dt_weight.shape[1], A.shape[1]])
    return y


def scan_into(out: Tensor, raw: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, *, reverse: bool) -> None:
    """`tfanet.ops.recurrence.scan_into` for what it `scans`; `out` needs channels without gaps."""
    raw, u = (_packed(t) for t in (raw, u))
    A, B, C = (t.contiguous() for t in (A, B, C))
    _call("scan", [out, raw, u, A, B, C], [*u.shape, A.shape[1], int(reverse), *_steps(out, raw, u)])


def scan_gradients(
    dout: Tensor, raw: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, *, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`tfanet.ops.recurrence.scan_gradients` for what it `scans`: of raw, u, A, B and C."""
    dout, raw, u = (_packed(t) for t in (dout, raw, u))
    A, B, C = (t.contiguous() for t in (A, B, C))
    draw, du = u.new_empty(u.shape), u.new_empty(u.shape)
    dA = u.new_empty(u.shape[0], *A.shape)  # every sequence its own: the sum does not depend on the threads
    dB, dC = torch.zeros_like(B), torch.zeros_like(C)
    sizes = [*u.shape, A.shape[1], int(reverse), *_steps(dout, raw, u)]
    _call("scan_gradients", [dout, raw, u, A, B, C, draw, du, dA, dB, dC], sizes)
    return draw, du, dA.sum(0), dB, dC


def _takes(x: Tensor, states: int) -> bool:
    return x.device.type == "cpu" and x.numel() > 0 and 1 <= states <= MAX_STATES


def _packed(x: Tensor) -> Tensor:
    """`x` with its last axis without gaps."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _steps(*tensors: Tensor) -> list[int]:
    return [step for x in tensors for step in x.stride()[:2]]


def _call(name: str, tensors: list[Tensor], numbers: list[int]) -> None:
    kernel = _kernel(name)
    assert kernel is not None
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
    if kernel(*pointers, *(ctypes.c_int64(n) for n in (*numbers, torch.get_num_threads()))):
        raise MemoryError("not enough memory for the scan")


@cache
def _kernel(name: str) -> ctypes._NamedFuncPointer | None:
    """The function `tfanet_<name>`; None without the library, or in one of an older version that lacks it."""
    path = library()
    if path is None:
        return None
    return getattr(ctypes.CDLL(str(path)), f"tfanet_{name}", None)
