"""Contexts that decide which kernels compute the operations of `tfanet.ops` while they are open.

All that the benchmarks know about the dispatch in `tfanet.ops` is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

import torch
from report import NotAvailable
from torch import Tensor

from tfanet.ops import dispatch, native


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
    no_triton = patch.object(dispatch, "has_triton", lambda: False)
    with _scan_kernel("auto"), no_triton, patch.object(native, "_kernel", lambda _: None):
        yield


@contextmanager
def our_kernels() -> Iterator[None]:
    """The scans on CUDA run our Triton kernels."""
    with _scan_kernel("triton"):
        yield


@contextmanager
def mamba_kernels(device: torch.device) -> Iterator[None]:
    """The scans on CUDA run mamba_ssm, between traversals in PyTorch. Raises `NotAvailable` without it."""
    if device.type != "cuda":
        raise NotAvailable("it needs CUDA")
    if dispatch.mamba_scan() is None:
        raise NotAvailable("not installed")
    with _scan_kernel("mamba-ssm"):
        yield


@contextmanager
def _scan_kernel(name: str) -> Iterator[None]:
    before = dispatch.use_scan_kernel(name)
    try:
        yield
    finally:
        dispatch.use_scan_kernel(before)
