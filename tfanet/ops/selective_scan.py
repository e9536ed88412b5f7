"""Selective scan (Gu and Dao, "Mamba", 2023, algorithm 2) with grouped B and C, as VMamba uses it.

    selective_scan(u, delta, A, B, C, D, delta_bias) -> y

| tensor       | shape              | meaning                                                |
|--------------|--------------------|--------------------------------------------------------|
| `u`, `delta` | [batch, K*D, L]    | input and step before softplus; K groups of D channels |
| `A`          | [K*D, N]           | decay rates, negative; N states a channel              |
| `B`, `C`     | [batch, K, N, L]   | input and output weights, shared by a group's channels |
| `D`          | [K*D]              | skip weight                                            |
| `delta_bias` | [K*D]              | added to `delta` before softplus                       |
| `y`          | [batch, K*D, L]    | FP32 (FP64 for FP64), whatever the dtype of `u`        |

    dt_t = softplus(delta_t + delta_bias)
    h_t  = exp(dt_t A) h_(t-1) + dt_t B_t u_t,   h_0 = 0
    y_t  = sum over N of C_t h_t  +  D u_t

It computes what `mamba_ssm.selective_scan_fn(..., delta_softplus=True)` computes. Softplus, exponential,
state and output are FP32 whatever the tensors' dtype (`tfanet.fp16`); FP64 stays FP64, for gradient checks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tfanet.fp16 import accum_dtype
from tfanet.ops.dispatch import gpu_kernels
from tfanet.ops.recurrence import channel_blocks, scan_gradients, scan_into

# The reference: one token after the other, as in the equation.


def selective_scan_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The equation, token by token: the tests' reference. Shapes as in the module's table."""
    dtype = accum_dtype(u)
    group = u.shape[1] // B.shape[1]
    dt = F.softplus(delta.to(dtype) + delta_bias.to(dtype)[:, None])
    B_all, C_all = (x.to(dtype).repeat_interleave(group, dim=1) for x in (B, C))  # [batch, K*D, N, L]
    h = torch.zeros(u.shape[0], u.shape[1], A.shape[1], dtype=dtype, device=u.device)
    y = []
    for t in range(u.shape[2]):
        decay = torch.exp(dt[:, :, t, None] * A.to(dtype))  # [batch, K*D, N]
        h = decay * h + (dt[:, :, t] * u[:, :, t].to(dtype))[..., None] * B_all[..., t]
        y.append((h * C_all[..., t]).sum(-1) + D.to(dtype) * u[:, :, t].to(dtype))
    return torch.stack(y, dim=-1)


# The CPU path: group by group, time-major, in blocks of channels that fit the cache.


def _blocks(u: Tensor, groups: int) -> Iterator[tuple[int, slice]]:
    """The groups, each with the channels of its blocks."""
    channels = u.shape[1] // groups
    for group in range(groups):
        for block in channel_blocks(u.shape[0] * u.shape[2], channels):
            yield group, slice(group * channels + block.start, group * channels + block.stop)


def _time_major(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, M, L] -> [batch, L, M], contiguous; may share its memory with `x`."""
    return x.to(dtype).mT.contiguous()


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    dtype = accum_dtype(u)
    A, D, bias = (x.to(dtype) for x in (A, D, delta_bias))
    y = torch.empty(u.shape, dtype=dtype, device=u.device)
    for group, block in _blocks(u, B.shape[1]):
        u_t = _time_major(u[:, block], dtype)
        raw = _time_major(delta[:, block], dtype) + bias[block]
        out = u_t * D[block]
        scan_into(out, raw, u_t, A[block], _time_major(B[:, group], dtype), _time_major(C[:, group], dtype))
        y[:, block] = out.mT
    return y


def _backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all seven inputs, from the inputs alone: states are recomputed."""
    dtype = accum_dtype(u)
    inputs = (u, delta, A, B, C, D, delta_bias)
    gradients = tuple(torch.zeros(x.shape, dtype=dtype, device=x.device) for x in inputs)
    du, ddelta, dA, dB, dC, dD, dbias = gradients
    A, D, bias = (x.to(dtype) for x in (A, D, delta_bias))
    for group, block in _blocks(u, B.shape[1]):
        u_t, dy_t = _time_major(u[:, block], dtype), _time_major(dy[:, block], dtype)
        raw = _time_major(delta[:, block], dtype) + bias[block]
        B_t, C_t = _time_major(B[:, group], dtype), _time_major(C[:, group], dtype)
        grads = scan_gradients(dy_t, raw, u_t, A[block], B_t, C_t)
        du[:, block] = torch.addcmul(grads.u, dy_t, D[block]).mT
        ddelta[:, block] = grads.raw.mT
        dA[block], dD[block], dbias[block] = grads.A, (dy_t * u_t).sum((0, 1)), grads.raw.sum((0, 1))
        dB[:, group] += grads.B.mT
        dC[:, group] += grads.C.mT
    result = tuple(gradient.to(x.dtype) for gradient, x in zip(gradients, inputs, strict=True))
    return result  # pyright: ignore[reportReturnType]


# The operation.


@torch.library.custom_op("tfanet::selective_scan", mutates_args=())
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Selective scan over the last axis; shapes and equation in the module's docstring.

    Raises `ValueError` if the shapes do not match.
    """
    _check(u, delta, A, B, C, D, delta_bias)
    return _forward(u, delta, A, B, C, D, delta_bias)


@selective_scan.register_kernel("cuda")
def _on_gpu(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    _check(u, delta, A, B, C, D, delta_bias)
    kernels = gpu_kernels(u)
    if kernels is None:
        return _forward(u, delta, A, B, C, D, delta_bias)
    return kernels.scan(u, delta, A, B, C, D, delta_bias)


@selective_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    _check(u, delta, A, B, C, D, delta_bias)
    return torch.empty(u.shape, dtype=accum_dtype(u), device=u.device)


@torch.library.custom_op("tfanet::selective_scan_backward", mutates_args=())
def selective_scan_backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `selective_scan` with respect to its seven inputs, given dL/dy [batch, K*D, L]."""
    return _backward(dy, u, delta, A, B, C, D, delta_bias)


@selective_scan_backward.register_kernel("cuda")
def _backward_on_gpu(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kernels = gpu_kernels(u)
    if kernels is None:
        return _backward(dy, u, delta, A, B, C, D, delta_bias)
    return kernels.gradients(dy, u, delta, A, B, C, D, delta_bias)


@selective_scan_backward.register_fake
def _(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    du, ddelta, dA, dB, dC, dD, dbias = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (u, delta, A, B, C, D, delta_bias)
    )
    return du, ddelta, dA, dB, dC, dD, dbias


def _keep_inputs(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx, dy: Tensor) -> tuple[Tensor, ...]:
    return selective_scan_backward(dy, *ctx.saved_tensors)


selective_scan.register_autograd(_gradient, setup_context=_keep_inputs)


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> None:
    if u.dim() != 3 or B.dim() != 4:
        raise ValueError(
            f"u must be [batch, K*D, L] and B [batch, K, N, L], not {[*u.shape]} and {[*B.shape]}"
        )
    batch, channels, length = u.shape
    groups, states = B.shape[1], B.shape[2]
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be split into {groups} groups")
    expected = {
        "delta": (delta, [batch, channels, length]),
        "A": (A, [channels, states]),
        "B": (B, [batch, groups, states, length]),
        "C": (C, [batch, groups, states, length]),
        "D": (D, [channels]),
        "delta_bias": (delta_bias, [channels]),
    }
    for name, (tensor, shape) in expected.items():
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, not {[*tensor.shape]}")
