"""Contexts that decide which kernels compute the operations of `tfanet.ops` while they are open.

All that the benchmarks know about the dispatch in `tfanet.ops` is here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
from other_scans import gradients_of, mamba_scan_fp32
from report import NotAvailable
from torch import Tensor

from tfanet.ops import dispatch, native
from tfanet.ops.traversals import scan_traversals

_SCAN_MODULES = ("tfanet.ops.selective_scan", "tfanet.ops.cross_selective_scan")


class Kernels(NamedTuple):
    """Our kernels, called like the operations of `tfanet.ops`."""

    scan: Callable[..., Tensor]
    scan_backward: Callable[..., tuple[Tensor, ...]]
    cross: Callable[..., Tensor]
    attention: Callable[..., Tensor]


def triton_kernels() -> Kernels:
    from tfanet.ops import cross_selective_scan_triton, linear_cross_attention_triton, selective_scan_triton

    return Kernels(
        selective_scan_triton.selective_scan_forward,
        selective_scan_triton.selective_scan_backward,
        cross_selective_scan_triton.cross_selective_scan_forward,
        linear_cross_attention_triton.linear_cross_attention_forward,
    )


@contextmanager
def vectorised_paths() -> Iterator[None]:
    """The operations run in PyTorch alone: no Triton on CUDA, no compiled code on a CPU."""
    with patch.object(dispatch, "has_triton", lambda: False), patch.object(native, "_kernel", lambda _: None):
        yield


@contextmanager
def our_kernels() -> Iterator[None]:
    """The scans on CUDA run our Triton kernels, whatever the dispatch would choose."""
    kernels = triton_kernels()
    with _scan_kernels(
        ("ours, Triton", kernels.scan),
        ("ours, Triton", kernels.scan_backward),
        ("ours, fused", kernels.cross),
    ):
        yield


@contextmanager
def mamba_kernels(device: torch.device) -> Iterator[None]:
    """The scans on CUDA run mamba_ssm, between traversals in PyTorch. Raises `NotAvailable` without it."""
    if device.type != "cuda":
        raise NotAvailable("it needs CUDA")
    scan = mamba_scan_fp32()

    def cross_scan(x: Tensor, p: Tensor, dt_weight: Tensor, *others: Tensor) -> Tensor:
        # Steps in FP32, as in the fused kernel: the scan adds up their rounding errors.
        return scan_traversals(scan, x, p.float(), dt_weight.float(), *others)

    gradients = partial(gradients_of, scan)
    with _scan_kernels(("mamba_ssm", scan), ("mamba_ssm", gradients), ("traversals", cross_scan)):
        yield


@contextmanager
def _scan_kernels(*kernels: tuple[str, Callable[..., object]]) -> Iterator[None]:
    """Names and functions of the scan, its gradients and the 2-D scan on CUDA."""
    chosen = dispatch.GpuKernels(*(dispatch.Kernel(*kernel) for kernel in kernels))
    with ExitStack() as stack:
        for name in _SCAN_MODULES:
            module = importlib.import_module(name)
            stack.enter_context(patch.object(module, "gpu_kernels", lambda device_type: chosen))
        yield
