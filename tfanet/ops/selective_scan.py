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

The same meaning as `mamba_ssm.selective_scan_fn(..., delta_softplus=True)`. Softplus, exponential, state and
output are FP32 whatever the tensors' dtype (FP64 stays FP64, for gradient checks): with slow decay a trained
model's states pass 1,000,000, far beyond FP16, and only the normalisation after the scan brings them back.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tfanet.ops.precision import wide_dtype

MAX_ROW = 128


# The oracle: one token after the other, as the equation reads.


def selective_scan_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The equation, token by token: the reference of every test. Shapes as in the module's table."""
    wide = wide_dtype(u)
    group = u.shape[1] // B.shape[1]
    dt = F.softplus(delta.to(wide) + delta_bias.to(wide)[:, None])
    B_all, C_all = (x.to(wide).repeat_interleave(group, dim=1) for x in (B, C))  # [batch, K*D, N, L]
    h = torch.zeros(u.shape[0], u.shape[1], A.shape[1], dtype=wide, device=u.device)
    y = []
    for t in range(u.shape[2]):
        decay = torch.exp(dt[:, :, t, None] * A.to(wide))  # [batch, K*D, N]
        h = decay * h + (dt[:, :, t] * u[:, :, t].to(wide))[..., None] * B_all[..., t]
        y.append((h * C_all[..., t]).sum(-1) + D.to(wide) * u[:, :, t].to(wide))
    return torch.stack(y, dim=-1)


# The vectorised path: L tokens lie in R rows of P positions. The recurrence steps over the P positions of
# all rows at once, then over the R row ends, then over the positions again from the right initial states:
# about 3 sqrt(L) steps, each one fused multiply-add over [batch, K, D, N, R], and no division anywhere.


class _Rows(NamedTuple):
    """The scan's operands with positions in front; P*R >= L, the tail is padded with dt = 0 (h keeps)."""

    dt: Tensor  # [P, batch, K, D, 1, R]
    u: Tensor  # [P, batch, K, D, 1, R]
    A: Tensor  # [K, D, N, 1]
    B: Tensor  # [P, batch, K, 1, N, R]
    C: Tensor  # [P, batch, K, 1, N, R]


def _row_length(length: int) -> int:
    return min(MAX_ROW, math.isqrt(max(length - 1, 0)) + 1)


def _to_rows(x: Tensor) -> Tensor:
    """[..., L] -> [P, ..., R], zero-padded."""
    length = x.shape[-1]
    row = _row_length(length)
    rows = -(-length // row)
    x = F.pad(x, (0, rows * row - length)).unflatten(-1, (rows, row))
    return x.movedim(-1, 0).contiguous()


def _from_rows(x: Tensor, length: int) -> Tensor:
    """[P, ..., R] -> [..., L]; the inverse of `_to_rows`."""
    return x.movedim(0, -1).flatten(-2)[..., :length]


def _operands(step: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> _Rows:
    groups = B.shape[1]
    wide = step.dtype
    return _Rows(
        dt=_to_rows(step.unflatten(1, (groups, -1)).unsqueeze(3)),
        u=_to_rows(u.to(wide).unflatten(1, (groups, -1)).unsqueeze(3)),
        A=A.to(wide).unflatten(0, (groups, -1)).unsqueeze(-1),
        B=_to_rows(B.to(wide).unsqueeze(2)),
        C=_to_rows(C.to(wide).unsqueeze(2)),
    )


def _states(decay: Tensor, row_decay: Tensor, x: Tensor) -> Tensor:
    """h_t = decay_t h_(t-1) + x_t; decay, x [P, ..., R]; row_decay [..., R], the product over a row."""
    ends = torch.zeros_like(x[0])
    for p in range(x.shape[0]):
        ends = torch.addcmul(x[p], decay[p], ends)
    enter = torch.empty_like(ends)
    state = torch.zeros_like(ends[..., 0])
    for r in range(x.shape[-1]):
        enter[..., r] = state
        state = torch.addcmul(ends[..., r], row_decay[..., r], state)
    h = torch.empty_like(x)
    previous = enter
    for p in range(x.shape[0]):
        previous = torch.addcmul(x[p], decay[p], previous, out=h[p])
    return h


def _adjoints(decay: Tensor, row_decay: Tensor, x: Tensor) -> Tensor:
    """g_t = x_t + decay_(t+1) g_(t+1): `_states` run backwards in time. Shapes as there."""
    ends = torch.zeros_like(x[0])
    for p in reversed(range(x.shape[0])):
        ends = (ends + x[p]).mul_(decay[p])
    enter = torch.empty_like(ends)
    state = torch.zeros_like(ends[..., 0])
    for r in reversed(range(x.shape[-1])):
        enter[..., r] = state
        state = torch.addcmul(ends[..., r], row_decay[..., r], state)
    g = torch.empty_like(x)
    carried = enter
    for p in reversed(range(x.shape[0])):
        torch.add(x[p], carried, out=g[p])
        carried = g[p] * decay[p]
    return g


def _previous(h: Tensor) -> Tensor:
    """h_(t-1) for every t, [P, ..., R]: one position back; for a row's first, the end of the row before."""
    before = torch.empty_like(h)
    before[1:] = h[:-1]
    before[0, ..., 1:] = h[-1, ..., :-1]
    before[0, ..., 0] = 0
    return before


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without overflow, to the last bits; vectorised, which torch's log1p is not on a CPU.

    With z = exp(-|x|) and w = 1 + z rounded, log(1 + z) = log(w) + (z - (w - 1)) / w up to second order.
    """
    z = torch.exp(-x.abs())
    w = z + 1
    return torch.log(w).add_((z - (w - 1)).div_(w)).add_(x.clamp(min=0))


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    wide = wide_dtype(u)
    step = _softplus(delta.to(wide) + delta_bias.to(wide)[:, None])
    rows = _operands(step, u, A, B, C)
    log_decay = rows.dt * rows.A
    row_decay = log_decay.sum(0).exp_()
    h = _states(log_decay.exp_(), row_decay, rows.dt * rows.u * rows.B)
    y = _from_rows((h.mul_(rows.C)).sum(4), u.shape[2]).flatten(1, 2)
    return torch.addcmul(y, u.to(wide), D.to(wide)[:, None])


def _backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all seven inputs; the states are computed again rather than kept."""
    wide, length = wide_dtype(u), u.shape[2]
    raw = delta.to(wide) + delta_bias.to(wide)[:, None]
    rows = _operands(_softplus(raw), u, A, B, C)
    log_decay = rows.dt * rows.A
    row_decay = log_decay.sum(0).exp_()
    decay = log_decay.exp_()
    dtu = rows.dt * rows.u
    h = _states(decay, row_decay, dtu * rows.B)
    dy_rows = _to_rows(dy.to(wide).unflatten(1, (B.shape[1], -1)).unsqueeze(3))
    g = _adjoints(decay, row_decay, dy_rows * rows.C)

    dC = _from_rows((h * dy_rows).sum(3), length)  # [batch, K, N, L]
    dB = _from_rows((g * dtu).sum(3), length)
    # dL/dlog(decay_t) = g_t decay_t h_(t-1). Taking h_t - x_t for decay_t h_(t-1) would cancel at large dt.
    dlog = _previous(h).mul_(decay).mul_(g)
    dA = (dlog * rows.dt).sum((0, 1, 5)).flatten(0, 1)  # [K*D, N]
    gB = g.mul_(rows.B).sum(4, keepdim=True)
    dstep = (dlog * rows.A).sum(4, keepdim=True).addcmul_(gB, rows.u)
    du = _from_rows(gB * rows.dt, length).flatten(1, 3)
    du = torch.addcmul(du, dy.to(wide), D.to(wide)[:, None])
    dD = (dy.to(wide) * u.to(wide)).sum((0, 2))
    ddelta = _from_rows(dstep, length).flatten(1, 3) * torch.sigmoid(raw)
    dbias = ddelta.sum((0, 2))
    return (
        du.to(u.dtype), ddelta.to(delta.dtype), dA.to(A.dtype), dB.to(B.dtype),
        dC.to(C.dtype), dD.to(D.dtype), dbias.to(delta_bias.dtype),
    )  # fmt: skip


# The operation.


@torch.library.custom_op("tfanet::selective_scan", mutates_args=())
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Selective scan over the last axis; shapes and equation in the module's docstring.

    Raises `ValueError` when the shapes do not fit each other.
    """
    _check(u, delta, A, B, C, D, delta_bias)
    return _forward(u, delta, A, B, C, D, delta_bias)


@selective_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    _check(u, delta, A, B, C, D, delta_bias)
    return torch.empty(u.shape, dtype=wide_dtype(u), device=u.device)


@torch.library.custom_op("tfanet::selective_scan_backward", mutates_args=())
def selective_scan_backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `selective_scan` with respect to its seven inputs, given dL/dy [batch, K*D, L]."""
    return _backward(dy, u, delta, A, B, C, D, delta_bias)


@selective_scan_backward.register_fake
def _(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    du, ddelta, dA, dB, dC, dD, dbias = (torch.empty_like(x) for x in (u, delta, A, B, C, D, delta_bias))
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
