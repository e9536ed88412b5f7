"""The compiled CPU kernels of the scans: `cross_selective_scan`, and the recurrence with its gradients.

`csrc/` is compiled when the package is installed, if there is a C++ compiler; without it the vectorised code
runs, slower. One library serves PyTorch and ONNX Runtime: a program that registers `library()` as a library
of custom operations in ONNX Runtime runs the 2-D scan's kernel instead of the function body in the file.
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
"""Environment variable; 0 disables the library."""


@cache
def library() -> Path | None:
    """The compiled library; None if it was not built or `TFANET_NATIVE` is 0."""
    spec = find_spec("tfanet.ops._native")
    if spec is None or spec.origin is None or os.environ.get(SWITCH) == "0":
        return None
    return Path(spec.origin)


def supported(x: Tensor, states: int) -> bool:
    """Whether the kernel can scan `x` with this many states: on the CPU, not FP64, not empty."""
    return _fits(x, states) and x.dtype != torch.float64 and _kernel("cross_selective_scan") is not None


def scans(u: Tensor, states: int) -> bool:
    """Whether `scan_into` and `scan_gradients` support `u` and this many states: CPU, FP32, not empty."""
    return _fits(u, states) and u.dtype == torch.float32 and _kernel("scan_gradients") is not None


def cross_selective_scan(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """`tfanet.ops.cross_selective_scan` for `supported` inputs, with its shapes; the result is FP32."""
    inputs = [t.float().contiguous() for t in (x, p, dt_weight, A, D, delta_bias)]
    y = torch.empty(x.shape, dtype=torch.float32)
    _call("cross_selective_scan", [*inputs, y], [*x.shape, dt_weight.shape[1], A.shape[1]])
    return y


def scan_into(out: Tensor, raw: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, *, reverse: bool) -> None:
    """`tfanet.ops.recurrence.scan_into` if `scans`; the channels of `out` must be contiguous."""
    raw, u = (_packed(t) for t in (raw, u))
    A, B, C = (t.contiguous() for t in (A, B, C))
    _call("scan", [out, raw, u, A, B, C], [*u.shape, A.shape[1], int(reverse), *_steps(out, raw, u)])


def scan_gradients(
    dout: Tensor, raw: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, *, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`tfanet.ops.recurrence.scan_gradients` if `scans`: of raw, u, A, B and C."""
    dout, raw, u = (_packed(t) for t in (dout, raw, u))
    A, B, C = (t.contiguous() for t in (A, B, C))
    draw, du = u.new_empty(u.shape), u.new_empty(u.shape)
    dA = u.new_empty(u.shape[0], *A.shape)  # one a sequence: the sum does not depend on threads
    dB, dC = torch.zeros_like(B), torch.zeros_like(C)
    sizes = [*u.shape, A.shape[1], int(reverse), *_steps(dout, raw, u)]
    _call("scan_gradients", [dout, raw, u, A, B, C, draw, du, dA, dB, dC], sizes)
    return draw, du, dA.sum(0), dB, dC


def _fits(x: Tensor, states: int) -> bool:
    return x.device.type == "cpu" and x.numel() > 0 and 1 <= states <= MAX_STATES


def _packed(x: Tensor) -> Tensor:
    """`x` with a contiguous last axis."""
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
    """The function `tfanet_<name>`; None without the library, or if an older library lacks it."""
    path = library()
    if path is None:
        return None
    return getattr(ctypes.CDLL(str(path)), f"tfanet_{name}", None)
