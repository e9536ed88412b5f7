"""Which kernels serve CUDA tensors: Triton's, or `mamba_ssm`'s scan where it is faster; else vectorised."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

Scan = Callable[..., Tensor]
TRIAL = (1, 4, 256, 3600)
"""Batch, groups, channels of a group and tokens of the scan that is timed: stage 2 of a 480 x 480 picture."""


def use_triton(x: Tensor) -> bool:
    """Whether an operation on `x` goes to its Triton kernels: not FP64, nothing empty, not without Triton."""
    return x.dtype != torch.float64 and x.numel() > 0 and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton is installed; it comes with PyTorch's CUDA builds for Linux."""
    return find_spec("triton") is not None


@cache
def scan_kernel(device_type: str) -> str:
    """What computes `selective_scan` on `cpu` or `cuda`: `vectorised`, `Triton` or `mamba_ssm`; chosen once.

    On CUDA with `mamba_ssm` installed both are timed on one scan, and `mamba_ssm` is taken if it is faster
    and gives the same.
    """
    if device_type != "cuda" or not has_triton():
        return "vectorised"
    other = mamba_scan()
    if other is None:
        return "Triton"
    from tfanet.ops.selective_scan_triton import selective_scan_forward

    return fastest({"Triton": selective_scan_forward, "mamba_ssm": other}, trial_inputs("cuda"))


def mamba_scan() -> Scan | None:
    """`mamba_ssm`'s scan with the signature and FP32 result of `selective_scan`; None without it."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore
    except (ImportError, OSError):  # not installed, or compiled for another CUDA
        return None

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
    ) -> Tensor:
        # Its result has u's dtype, and a trained model's passes the range of FP16.
        u, delta, A, B, C, D, bias = (x.float().contiguous() for x in (u, delta, A, B, C, D, delta_bias))
        return selective_scan_fn(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)

    return scan


def trial_inputs(device: str, dtype: torch.dtype = torch.float16) -> tuple[Tensor, ...]:
    """Inputs of one scan of the sizes `TRIAL`."""
    batch, groups, channels, length = TRIAL
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    u, delta = normal(batch, groups * channels, length), normal(batch, groups * channels, length)
    B, C = normal(batch, groups, 1, length), normal(batch, groups, 1, length)
    A, D, bias = -torch.ones(groups * channels, 1), normal(groups * channels), normal(groups * channels) - 4
    small = (x.to(device, dtype) for x in (u, delta, B, C))
    u, delta, B, C = small
    return u, delta, A.to(device), B, C, D.to(device), bias.to(device)


def fastest(scans: Mapping[str, Scan], inputs: tuple[Tensor, ...], repeats: int = 5) -> str:
    """The name of the scan with the smallest median time; the first is the one that the others must equal."""
    names = list(scans)
    expected = scans[names[0]](*inputs)
    scale = expected.abs().max().item()
    right = [name for name in names if (scans[name](*inputs) - expected).abs().max().item() <= 1e-3 * scale]
    return min(right, key=lambda name: _median_seconds(scans[name], inputs, repeats))


def _median_seconds(scan: Scan, inputs: tuple[Tensor, ...], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        _wait(inputs[0])
        started = time.perf_counter()
        scan(*inputs)
        _wait(inputs[0])
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[repeats // 2]


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
