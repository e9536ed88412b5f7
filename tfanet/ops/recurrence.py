"""The recurrence of a selective scan, time-major: the core of both scans' CPU paths.

    step_t = softplus(raw_t)
    h_t = exp(step_t A) h_(t-1) + step_t B_t u_t,   h_(-1) = 0
    out_t += sum over N of C_t h_t

In FP32 the compiled kernel of `native` computes it, if it was built. The vectorised code here is for FP64 and
for machines without it. Channels are innermost, so every step is one multiply-add over contiguous memory. L
tokens are cut into rows of `ROW`. The recurrence steps over the positions of all rows at once, then over the
row ends (the same problem, `ROW` times shorter), then a second time over the positions, now from the initial
states of the rows. Nothing is divided by a decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tfanet.ops import native

ROW = 16
"""Tokens a row; 8 to 32 are equally fast."""
BLOCK = 1 << 20
"""Elements of a pass, so that its temporaries fit the processor's cache."""


def channel_blocks(tokens: int, channels: int) -> Iterator[slice]:
    """Slices of the channels such that a slice times `tokens` has about `BLOCK` elements."""
    width = max(16, BLOCK // max(tokens, 1) // 16 * 16)
    for first in range(0, channels, width):
        yield slice(first, min(first + width, channels))


def linear_recurrence_(decay: Tensor, x: Tensor, *, reverse: bool) -> None:
    """Replace x_t by h_t = decay_t h_(t-1) + x_t along axis 1 of [batch, L, M]; from the end if `reverse`."""
    length = x.shape[1]
    if length <= 2 * ROW:
        _steps(_in_order(decay, 1, reverse), _in_order(x, 1, reverse))
        return
    rows = length // ROW
    first = length - rows * ROW if reverse else 0
    inside = slice(first, first + rows * ROW)
    decays = _in_order(decay[:, inside].unflatten(1, (rows, ROW)), 2, reverse)
    values = _in_order(x[:, inside].unflatten(1, (rows, ROW)), 2, reverse)
    end, row_decay = values[0].clone(), decays[0].clone()
    for a, b in zip(decays[1:], values[1:], strict=True):
        torch.addcmul(b, a, end, out=end)
        row_decay.mul_(a)
    linear_recurrence_(row_decay, end, reverse=reverse)
    into, out_of = (slice(None, -1), slice(1, None)) if reverse else (slice(1, None), slice(None, -1))
    values[0][:, into].addcmul_(decays[0][:, into], end[:, out_of])
    _steps(decays, values)
    # The tokens after the last whole row come last in time; their predecessor is that row's end.
    rest = slice(0, first + 1) if reverse else slice(rows * ROW - 1, None)
    _steps(_in_order(decay[:, rest], 1, reverse), _in_order(x[:, rest], 1, reverse))


def _in_order(x: Tensor, axis: int, reverse: bool) -> tuple[Tensor, ...]:
    parts = x.unbind(axis)
    return parts[::-1] if reverse else parts


def _steps(decays: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> None:
    for a, value, before in zip(decays[1:], values[1:], values, strict=False):
        value.addcmul_(a, before)


def scan_into(
    out: Tensor, raw: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, *, reverse: bool = False
) -> None:
    """Add sum over N of C h to `out`.

    out, raw, u [batch, L, M]; A [M, N]; B, C [batch, L, N]; all of one floating dtype.
    """
    if native.scans(u, A.shape[1]):
        native.scan_into(out, raw, u, A, B, C, reverse=reverse)
        return
    step = F.softplus(raw)
    weighted = step * u
    for n in range(A.shape[1]):
        decay = torch.mul(step, A[:, n]).exp_()
        h = weighted * B[..., n, None]
        linear_recurrence_(decay, h, reverse=reverse)
        out += h.mul_(C[..., n, None])


class ScanGradients(NamedTuple):
    """Gradients of `scan_into`'s result with respect to its inputs, in their shapes."""

    raw: Tensor
    u: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


def scan_gradients(
    dout: Tensor, raw: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, *, reverse: bool = False
) -> ScanGradients:
    """Gradients given dL/dout [batch, L, M]; the states are recomputed."""
    if native.scans(u, A.shape[1]):
        return ScanGradients(*native.scan_gradients(dout, raw, u, A, B, C, reverse=reverse))
    step = F.softplus(raw)
    weighted = step * u
    grads = ScanGradients(*(torch.zeros_like(x) for x in (raw, u, A, B, C)))
    for n in range(A.shape[1]):
        decay = torch.mul(step, A[:, n]).exp_()
        h = weighted * B[..., n, None]
        linear_recurrence_(decay, h, reverse=reverse)
        grads.C[..., n] = (h * dout).sum(-1)

        g = dout * C[..., n, None]  # dL/dh_t = C_t dout_t + decay_(t+1) dL/dh_(t+1)
        linear_recurrence_(_shifted(decay, left=not reverse), g, reverse=not reverse)
        grads.B[..., n] = (g * weighted).sum(-1)
        # dL/dlog(decay_t) = dL/dh_t decay_t h_(t-1). The difference h_t - x_t would cancel at large steps.
        dlog = _shifted(h, left=reverse).mul_(decay).mul_(g)
        grads.A[:, n] = (dlog * step).sum((0, 1))
        g.mul_(B[..., n, None])
        grads.raw.addcmul_(g, u).addcmul_(dlog, A[:, n])
        grads.u.addcmul_(g, step)
    grads.raw.mul_(torch.sigmoid(raw))
    return grads


def _shifted(x: Tensor, *, left: bool) -> Tensor:
    """x_(t-1) at every t of [batch, L, M], or x_(t+1) if `left`; 0 at the end."""
    shifted = torch.zeros_like(x)
    if left:
        shifted[:, :-1] = x[:, 1:]
    else:
        shifted[:, 1:] = x[:, :-1]
    return shifted
