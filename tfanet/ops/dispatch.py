"""Which kernels compute the operations on CUDA tensors: Triton's, `mamba_ssm`'s, or the vectorised code.

The scan kernels are a setting of the process, `use_scan_kernel`:

| name        | kernels                                                                           |
|-------------|-----------------------------------------------------------------------------------|
| `auto`      | Triton's where Triton is installed, else vectorised                               |
| `triton`    | Triton's                                                                          |
| `mamba-ssm` | `mamba_ssm`'s scan and gradients in FP32; the 2-D scan as four traversals of them |

FP64 and empty tensors always take the vectorised code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tfanet.errors import UserError

SCAN_KERNELS = ("auto", "triton", "mamba-ssm")

_setting = "auto"


class ScanKernels(NamedTuple):
    """Functions that compute the scans on a GPU, and their name for users."""

    name: str
    scan: Callable[..., Tensor]
    """As `selective_scan`."""
    gradients: Callable[..., Any]
    """As `selective_scan_backward`."""
    cross_scan: Callable[..., Tensor]
    """As `cross_selective_scan`."""
    max_map: float = math.inf
    """`cross_scan` needs fewer elements than this in one image's x and in its p."""


def use_scan_kernel(name: str) -> str:
    """Let scans on a GPU use `name`, one of `SCAN_KERNELS`, from now on; returns the setting before.

    Raises `UserError` when the name is unknown or its package is missing.
    """
    global _setting
    if name not in SCAN_KERNELS:
        raise UserError(f"unknown scan kernel {name!r}; known: {', '.join(SCAN_KERNELS)}")
    if name == "triton" and not has_triton():
        raise UserError("Triton is not installed; use the scan kernel auto, or pip install triton")
    if name == "mamba-ssm" and mamba_scan() is None:
        raise UserError("mamba_ssm is missing or does not load; install it: pip install 'tfanet[mamba]'")
    before, _setting = _setting, name
    return before


def use_triton(x: Tensor) -> bool:
    """Whether Triton kernels can compute an operation on `x`: with Triton installed, unless FP64 or empty."""
    return x.dtype != torch.float64 and x.numel() > 0 and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton is installed; PyTorch's CUDA builds for Linux include it."""
    return find_spec("triton") is not None


def gpu_kernels(x: Tensor) -> ScanKernels | None:
    """The kernels for a scan of `x`; None for the vectorised code."""
    if _setting == "mamba-ssm" and x.dtype != torch.float64 and x.numel() > 0:
        return mamba_kernels()
    return triton_kernels() if use_triton(x) else None


def scans_by(device_type: str) -> str:
    """What computes the scans on `cpu` or `cuda`, for users."""
    from tfanet.ops import native

    if device_type == "cuda" and (kernels := gpu_kernels(torch.empty(1))):
        return f"scans by {kernels.name}"
    compiled = device_type == "cpu" and native.library() is not None
    return "scans compiled" if compiled else "scans vectorised"


def triton_kernels() -> ScanKernels:
    from tfanet.ops import cross_selective_scan_triton, selective_scan_triton

    return ScanKernels(
        "Triton",
        selective_scan_triton.selective_scan_forward,
        selective_scan_triton.selective_scan_backward,
        cross_selective_scan_triton.cross_selective_scan_forward,
        cross_selective_scan_triton.MAX_ELEMENTS,
    )


def mamba_kernels() -> ScanKernels:
    from tfanet.ops.traversals import scan_traversals

    scan = mamba_scan()
    assert scan is not None, "use_scan_kernel has checked it"

    def cross_scan(x: Tensor, p: Tensor, dt_weight: Tensor, *others: Tensor) -> Tensor:
        # Steps in FP32, as Triton's kernels have them: a scan sums their rounding errors.
        return scan_traversals(scan, x, p.float(), dt_weight.float(), *others)

    return ScanKernels("mamba_ssm", scan, partial(gradients_of, scan), cross_scan)


def mamba_scan() -> Callable[..., Tensor] | None:
    """`mamba_ssm`'s scan with the signature and FP32 result of `selective_scan`; None where it is missing."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore
    except (ImportError, OSError):  # not installed, or compiled for another CUDA
        return None

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
    ) -> Tensor:
        # Its result has u's dtype, and a trained model's exceeds FP16's range.
        u, delta, A, B, C, D, bias = (x.float().contiguous() for x in (u, delta, A, B, C, D, delta_bias))
        return selective_scan_fn(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)

    return scan


def gradients_of(scan: Callable[..., Tensor], dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the inputs, each in its input's dtype, by the autograd function that `scan` calls.

    Inside an operation PyTorch records autograd functions only, no casts, so they are done here.
    """
    leaves = [x.detach().float().contiguous().requires_grad_() for x in inputs]
    with torch.enable_grad():
        y = scan(*leaves)
    gradients = torch.autograd.grad(y, leaves, dy.float())
    return tuple(gradient.to(x.dtype) for gradient, x in zip(gradients, inputs, strict=True))
