"""The 2-D selective scan of VMamba (Liu et al., 2024, "SS2D") in one operation.

    cross_selective_scan(x, p, dt_weight, A, D, delta_bias) -> y

| tensor       | shape                     | meaning                                                |
|--------------|---------------------------|--------------------------------------------------------|
| `x`          | [batch, H, W, D]          | the feature map, channels last                         |
| `p`          | [batch, H, W, K*(R + 2N)] | for each of K = 4 directions: dt (R), B (N), C (N)     |
| `dt_weight`  | [K*D, R]                  | delta = dt_weight dt                                   |
| `A`          | [K*D, N]                  | decay rates, negative                                  |
| `D`          | [K*D]                     | skip weight                                            |
| `delta_bias` | [K*D]                     | added to delta before softplus                         |
| `y`          | [batch, H, W, D]          | FP32 (FP64 for FP64), whatever the dtype of `x`        |

The map is scanned in four orders, k = 0..3: by rows, by columns, and both reversed. Each order is a
selective scan (`tfanet.ops.selective_scan`) with its dt, B, C, A, D and bias; `y` is the sum of the four in
raster order. dt, B and C are linear in a pixel's features, so they are computed once, in raster order, for
all directions. The caller needs no reordered copy of the map and no delta of 4 D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tfanet.fp16 import accum_dtype
from tfanet.ops import native
from tfanet.ops.dispatch import gpu_kernels
from tfanet.ops.recurrence import channel_blocks, scan_gradients, scan_into
from tfanet.ops.selective_scan import selective_scan_loop
from tfanet.ops.traversals import DIRECTIONS, cross_merge, cross_scan, traversal_gradients


def cross_selective_scan_loop(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The tests' reference: four traversals, `selective_scan_loop`, their sum. Shapes as above."""
    dtype, states, rank = accum_dtype(x), A.shape[1], dt_weight.shape[1]
    u = cross_scan(x.to(dtype))
    p = p.to(dtype).unflatten(-1, (DIRECTIONS, -1))
    traversals = torch.stack([cross_scan(p[..., k, :])[:, k] for k in range(DIRECTIONS)], dim=1)
    dt, B, C = traversals.split([rank, states, states], dim=2)
    delta = torch.einsum("kdr,bkrl->bkdl", dt_weight.to(dtype).unflatten(0, (DIRECTIONS, -1)), dt)
    y = selective_scan_loop(u.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, delta_bias)
    return cross_merge(y.unflatten(1, (DIRECTIONS, -1)), x.shape[1], x.shape[2])


# The vectorised path: for gradients, for FP64, and without `native` and Triton. A direction is a scan by rows
# of the map or of its transpose, forward or reversed. Channels are processed in blocks that fit the cache.


class _Direction(NamedTuple):
    """The operands of one direction over the L pixels, by rows of the map or of its transpose."""

    transposed: bool
    reverse: bool
    channels: slice  # of the K*D
    dt: Tensor  # [batch, L, R]
    B: Tensor  # [batch, L, N]
    C: Tensor  # [batch, L, N]


def _both_orders(x: Tensor) -> tuple[Tensor, Tensor]:
    """[batch, H, W, C] -> [batch, L, C] by rows and by columns."""
    return x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2)


def _directions(p: Tensor, rank: int, states: int, channels: int) -> Iterator[_Direction]:
    orders = _both_orders(p)
    for k in range(DIRECTIONS):
        part = orders[k % 2].unflatten(-1, (DIRECTIONS, -1))[..., k, :]
        dt, B, C = (piece.contiguous() for piece in part.split([rank, states, states], dim=-1))
        yield _Direction(k % 2 == 1, k >= 2, slice(k * channels, (k + 1) * channels), dt, B, C)


def _forward(x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    dtype = accum_dtype(x)
    x, p, dt_weight, A, D, bias = (t.to(dtype) for t in (x, p, dt_weight, A, D, delta_bias))
    height, width, channels = x.shape[1:]
    maps = _both_orders(x)
    sums = (maps[0] * D.unflatten(0, (DIRECTIONS, -1)).sum(0), torch.zeros_like(maps[1]))
    for direction in _directions(p, dt_weight.shape[1], A.shape[1], channels):
        weight, rates, shift = (t[direction.channels] for t in (dt_weight, A, bias))
        u, out = maps[direction.transposed], sums[direction.transposed]
        for block in channel_blocks(direction.dt[..., 0].numel(), channels):
            raw = F.linear(direction.dt, weight[block], shift[block])
            scan_into(
                out[..., block], raw, u[..., block], rates[block], direction.B, direction.C,
                reverse=direction.reverse,
            )  # fmt: skip
    by_rows, by_columns = sums[0].unflatten(1, (height, width)), sums[1].unflatten(1, (width, height))
    return by_rows + by_columns.transpose(1, 2)


def _backward(
    dy: Tensor, x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all six inputs, from the inputs alone: states are recomputed."""
    dtype = accum_dtype(x)
    inputs = (x, p, dt_weight, A, D, delta_bias)
    dy, x, p, dt_weight, A, D, bias = (t.to(dtype) for t in (dy, *inputs))
    height, width, channels = x.shape[1:]
    rank, states = dt_weight.shape[1], A.shape[1]
    maps, dys = _both_orders(x), _both_orders(dy)
    dmaps = (dys[0] * D.unflatten(0, (DIRECTIONS, -1)).sum(0), torch.zeros_like(maps[1]))
    dweight, dA, dbias = (torch.zeros_like(t) for t in (dt_weight, A, bias))
    dp: list[Tensor] = []
    for direction in _directions(p, rank, states, channels):
        weight, rates, shift = (t[direction.channels] for t in (dt_weight, A, bias))
        u, dout, du = (t[direction.transposed] for t in (maps, dys, dmaps))
        ddt, dB, dC = (torch.zeros_like(t) for t in (direction.dt, direction.B, direction.C))
        for block in channel_blocks(direction.dt[..., 0].numel(), channels):
            raw = F.linear(direction.dt, weight[block], shift[block])
            grads = scan_gradients(
                dout[..., block], raw, u[..., block], rates[block], direction.B, direction.C,
                reverse=direction.reverse,
            )  # fmt: skip
            du[..., block] += grads.u
            dB += grads.B
            dC += grads.C
            ddt += grads.raw @ weight[block]
            dA[direction.channels][block] = grads.A
            dbias[direction.channels][block] = grads.raw.sum((0, 1))
            dweight[direction.channels][block] = torch.einsum("bld,blr->dr", grads.raw, direction.dt)
        part = torch.cat([ddt, dB, dC], dim=-1)
        dp.append(_to_raster(part, height, width, direction.transposed))
    dx = _to_raster(dmaps[0], height, width, False) + _to_raster(dmaps[1], height, width, True)
    dD = torch.einsum("blc,blc->c", dys[0], maps[0]).repeat(DIRECTIONS)
    gradients = (dx, torch.cat(dp, dim=-1), dweight, dA, dD, dbias)
    result = tuple(gradient.to(t.dtype).contiguous() for gradient, t in zip(gradients, inputs, strict=True))
    return result  # pyright: ignore[reportReturnType]


def _to_raster(x: Tensor, height: int, width: int, transposed: bool) -> Tensor:
    """[batch, L, C] by rows, or by columns, -> [batch, H, W, C]."""
    return x.unflatten(1, (width, height)).transpose(1, 2) if transposed else x.unflatten(1, (height, width))


# The operation.


@torch.library.custom_op("tfanet::cross_selective_scan", mutates_args=())
def cross_selective_scan(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Four-way selective scan of a feature map; shapes in the module's docstring.

    Raises `ValueError` if the shapes do not match.
    """
    _check(x, p, dt_weight, A, D, delta_bias)
    if native.supported(x, A.shape[1]):
        return native.cross_selective_scan(x, p, dt_weight, A, D, delta_bias)
    with torch.autocast(x.device.type, enabled=False):
        return _forward(x, p, dt_weight, A, D, delta_bias)


@cross_selective_scan.register_kernel("cuda")
def _on_gpu(x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    _check(x, p, dt_weight, A, D, delta_bias)
    with torch.autocast(x.device.type, enabled=False):
        kernels = gpu_kernels(x)
        if kernels is None or max(x[0].numel(), p[0].numel()) >= kernels.max_map:
            return _forward(x, p, dt_weight, A, D, delta_bias)
        return kernels.cross_scan(x, p, dt_weight, A, D, delta_bias)


@cross_selective_scan.register_fake
def _(x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    _check(x, p, dt_weight, A, D, delta_bias)
    return torch.empty(x.shape, dtype=accum_dtype(x), device=x.device)


@torch.library.custom_op("tfanet::cross_selective_scan_backward", mutates_args=())
def cross_selective_scan_backward(
    dy: Tensor, x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `cross_selective_scan` with respect to its six inputs, given dL/dy [batch, H, W, D]."""
    with torch.autocast(x.device.type, enabled=False):
        return _backward(dy, x, p, dt_weight, A, D, delta_bias)


@cross_selective_scan_backward.register_kernel("cuda")
def _backward_on_gpu(
    dy: Tensor, x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        kernels = gpu_kernels(x)
        if kernels is None:
            return _backward(dy, x, p, dt_weight, A, D, delta_bias)
        return traversal_gradients(kernels.gradients, dy, x, p, dt_weight, A, D, delta_bias)


@cross_selective_scan_backward.register_fake
def _(
    dy: Tensor, x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dp, dweight, dA, dD, dbias = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, p, dt_weight, A, D, delta_bias)
    )
    return dx, dp, dweight, dA, dD, dbias


def _keep_inputs(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx, dy: Tensor) -> tuple[Tensor, ...]:
    return cross_selective_scan_backward(dy, *ctx.saved_tensors)


cross_selective_scan.register_autograd(_gradient, setup_context=_keep_inputs)


def _check(x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor) -> None:
    if x.dim() != 4 or dt_weight.dim() != 2 or A.dim() != 2:
        raise ValueError(
            f"x must be [batch, H, W, D], dt_weight [4*D, R] and A [4*D, N], not {[*x.shape]}, "
            f"{[*dt_weight.shape]} and {[*A.shape]}"
        )
    batch, height, width, channels = x.shape
    scanned, rank, states = DIRECTIONS * channels, dt_weight.shape[1], A.shape[1]
    expected = {
        "p": (p, [batch, height, width, DIRECTIONS * (rank + 2 * states)]),
        "dt_weight": (dt_weight, [scanned, rank]),
        "A": (A, [scanned, states]),
        "D": (D, [scanned]),
        "delta_bias": (delta_bias, [scanned]),
    }
    for name, (tensor, shape) in expected.items():
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, not {[*tensor.shape]}")
