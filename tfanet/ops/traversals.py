"""The 2-D scan as four traversals copied in memory, a 1-D scan of them, and their sum.

The fused kernels avoid these copies. Gradients on a GPU use them, and the 2-D scan with `mamba_ssm`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DIRECTIONS = 4


def cross_scan(x: Tensor) -> Tensor:
    """Four traversals of [batch, H, W, C] -> [batch, 4, C, H*W]: by rows, by columns, and both reversed."""
    by_rows, by_columns = x.permute(0, 3, 1, 2).flatten(2), x.permute(0, 3, 2, 1).flatten(2)
    forward = torch.stack([by_rows, by_columns], dim=1)
    return torch.cat([forward, forward.flip(-1)], dim=1)


def cross_merge(y: Tensor, height: int, width: int) -> Tensor:
    """Sum of four traversals [batch, 4, C, H*W] in raster order -> [batch, H, W, C]."""
    by_rows, by_columns = (y[:, :2] + y[:, 2:].flip(-1)).unbind(1)
    merged = by_rows.unflatten(-1, (height, width)) + by_columns.unflatten(-1, (width, height)).mT
    return merged.permute(0, 2, 3, 1)


def scan_traversals(
    scan: Callable[..., Tensor], x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor,
    delta_bias: Tensor,
) -> Tensor:  # fmt: skip
    """`cross_selective_scan` by `scan`, a function as `selective_scan`; delta has `dt_weight`'s dtype."""
    dt, B, C = _traversals(p, dt_weight.shape[1], A.shape[1])
    delta = dt_weight.unflatten(0, (DIRECTIONS, -1)) @ dt
    y = scan(cross_scan(x).flatten(1, 2), delta.flatten(1, 2), A, B, C, D, delta_bias)
    return cross_merge(y.unflatten(1, (DIRECTIONS, -1)), x.shape[1], x.shape[2])


def traversal_gradients(
    scan_gradients: Callable[..., tuple[Tensor, ...]], dy: Tensor, x: Tensor, p: Tensor, dt_weight: Tensor,
    A: Tensor, D: Tensor, delta_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the six inputs in their dtypes by `scan_gradients`, as `selective_scan_backward`."""
    inputs = (x, p, dt_weight, A, D, delta_bias)
    dy, x, p, dt_weight = (t.float() for t in (dy, x, p, dt_weight))
    height, width = x.shape[1:3]
    dt, B, C = _traversals(p, dt_weight.shape[1], A.shape[1])
    weight = dt_weight.unflatten(0, (DIRECTIONS, -1))  # [4, D, R]
    u, dy = cross_scan(x).flatten(1, 2), cross_scan(dy).flatten(1, 2)
    delta = (weight @ dt).flatten(1, 2)
    du, ddelta, dA, dB, dC, dD, dbias = scan_gradients(dy, u, delta, A, B, C, D, delta_bias)
    ddelta = ddelta.unflatten(1, (DIRECTIONS, -1))
    dweight = torch.einsum("bkdl,bkrl->kdr", ddelta, dt).flatten(0, 1)
    dparts = torch.cat([weight.mT @ ddelta, dB, dC], dim=2)
    dp = torch.cat([_to_raster(dparts[:, k], k, height, width) for k in range(DIRECTIONS)], dim=-1)
    dx = cross_merge(du.unflatten(1, (DIRECTIONS, -1)), height, width)
    gradients = (dx, dp, dweight, dA, dD, dbias)
    result = tuple(gradient.to(t.dtype).contiguous() for gradient, t in zip(gradients, inputs, strict=True))
    return result  # pyright: ignore[reportReturnType]


def _traversals(p: Tensor, rank: int, states: int) -> tuple[Tensor, ...]:
    """dt, B and C [batch, 4, R or N, L] in the order of each direction."""
    p = p.permute(0, 3, 1, 2).unflatten(1, (DIRECTIONS, -1))  # [batch, 4, R + 2N, H, W]
    orders = [p[:, 0].flatten(2), p[:, 1].mT.flatten(2)]
    orders += [p[:, 2].flatten(2).flip(-1), p[:, 3].mT.flatten(2).flip(-1)]
    return torch.stack(orders, dim=1).split([rank, states, states], dim=2)


def _to_raster(x: Tensor, k: int, height: int, width: int) -> Tensor:
    """Direction k's traversal [batch, C, L] -> [batch, H, W, C]."""
    x = x.flip(-1) if k >= 2 else x
    if k % 2:
        return x.unflatten(-1, (width, height)).permute(0, 3, 2, 1)
    return x.unflatten(-1, (height, width)).permute(0, 2, 3, 1)
