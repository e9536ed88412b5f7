"""Which kernels serve CUDA tensors: Triton's, or `mamba_ssm`'s where they are faster; else vectorised.

Rivals are timed on one problem when a kernel is first needed, and the choice holds as long as the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

TRIAL = (1, 4, 256, 60)
"""Batch, groups, channels of a group and side of the map that are timed: stage 2 of a 480 x 480 picture."""
TOLERANCE = 1e-3
"""Largest error of a rival, as a share of the largest value, half gradients' rounding included."""

Kernels = dict[str, Callable[..., Any]]
"""Rivals by name."""


class Kernel(NamedTuple):
    """A name for people, and what computes the operation."""

    name: str
    run: Callable[..., Any]


class GpuKernels(NamedTuple):
    """What computes the scans on a GPU."""

    scan: Kernel
    """As `selective_scan`: `Triton` or `mamba_ssm`."""
    gradients: Kernel
    """As `selective_scan_backward`: the same."""
    cross_scan: Kernel
    """As `cross_selective_scan`: `fused`, or `traversals` around the scan."""


def use_triton(x: Tensor) -> bool:
    """Whether an operation on `x` goes to its Triton kernels: not FP64, nothing empty, not without Triton."""
    return x.dtype != torch.float64 and x.numel() > 0 and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton is installed; it comes with PyTorch's CUDA builds for Linux."""
    return find_spec("triton") is not None


def scans_by(device_type: str) -> str:
    """What computes the scans on `cpu` or `cuda`, for people."""
    if device_type != "cuda" or not has_triton():
        return "scans compiled" if _compiled(device_type) else "scans vectorised"
    chosen = gpu_kernels(device_type)
    return (
        f"scans by {chosen.scan.name}, their gradients by {chosen.gradients.name}, "
        f"2-D scans {chosen.cross_scan.name}"
    )


def _compiled(device_type: str) -> bool:
    from tfanet.ops import native

    return device_type == "cpu" and native.library() is not None


@cache
@torch.inference_mode(False)  # gradients are timed too, whoever needs the first kernel
def gpu_kernels(device_type: str) -> GpuKernels:
    """The fastest kernels that give the same as Triton's; `device_type` is `cuda`, or `cpu` interpreted."""
    from tfanet.ops import cross_selective_scan_triton, selective_scan_triton
    from tfanet.ops.traversals import scan_traversals

    scans: Kernels = {"Triton": selective_scan_triton.selective_scan_forward}
    gradients: Kernels = {"Triton": selective_scan_triton.selective_scan_backward}
    inputs, cross_inputs = trial_inputs(device_type)
    if theirs := mamba_scan():
        scans["mamba_ssm"], gradients["mamba_ssm"] = theirs, partial(gradients_of, theirs)
    scan = fastest(scans, inputs)

    def traversals(x: Tensor, p: Tensor, dt_weight: Tensor, *others: Tensor) -> Tensor:
        # Steps in FP32, as the fused kernels have them: a scan adds up what rounding takes away.
        return scan_traversals(scan.run, x, p.float(), dt_weight.float(), *others)

    fused = cross_selective_scan_triton.cross_selective_scan_forward
    return GpuKernels(
        scan,
        fastest(gradients, (inputs[0].float(), *inputs)),
        fastest({"fused": fused, "traversals": traversals}, cross_inputs),
    )


def mamba_scan() -> Callable[..., Tensor] | None:
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


def gradients_of(scan: Callable[..., Tensor], dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the inputs, each in its input's dtype, by the autograd function that `scan` calls.

    Inside an operation PyTorch records such functions only, no casts: those are left to do here.
    """
    leaves = [x.detach().float().contiguous().requires_grad_() for x in inputs]
    with torch.enable_grad():
        y = scan(*leaves)
    found = torch.autograd.grad(y, leaves, dy.float())
    return tuple(gradient.to(x.dtype) for gradient, x in zip(found, inputs, strict=True))


def trial_inputs(
    device: str, dtype: torch.dtype = torch.float16
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs of one `selective_scan` and of one `cross_selective_scan` of the sizes `TRIAL`."""
    batch, groups, channels, side = TRIAL
    length, rows, rank = side * side, groups * channels, max(channels // 32, 1)
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).to(device, dtype)

    u, delta = normal(batch, rows, length), normal(batch, rows, length)
    B, C = normal(batch, groups, 1, length), normal(batch, groups, 1, length)
    x, p = normal(batch, side, side, channels), normal(batch, side, side, groups * (rank + 2))
    weight = normal(rows, rank) * rank**-0.5
    A = -torch.ones(rows, 1, device=device)
    D, bias = normal(rows).float(), normal(rows).float() - 4
    return (u, delta, A, B, C, D, bias), (x, p, weight, A, D, bias)


def fastest(kernels: Kernels, inputs: tuple[Tensor, ...], repeats: int = 5) -> Kernel:
    """The kernel with the smallest median time, of those that give the same as the first."""
    names = list(kernels)
    if len(names) == 1:
        return Kernel(names[0], kernels[names[0]])
    expected = _results(kernels[names[0]], inputs)
    right = [name for name in names if _equal(_results(kernels[name], inputs), expected)]
    name = min(right, key=lambda name: _median_seconds(kernels[name], inputs, repeats))
    return Kernel(name, kernels[name])


def _results(kernel: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    found = kernel(*inputs)
    return (found,) if isinstance(found, Tensor) else found


def _equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(
        (ours.float() - right.float()).abs().max() <= TOLERANCE * right.float().abs().max()
        for ours, right in zip(found, expected, strict=True)
    )


def _median_seconds(kernel: Callable[..., Any], inputs: tuple[Tensor, ...], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        _wait(inputs[0])
        started = time.perf_counter()
        kernel(*inputs)
        _wait(inputs[0])
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[repeats // 2]


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
