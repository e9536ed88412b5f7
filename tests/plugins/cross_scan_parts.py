"""Reference implementations of the 2-D scan's plugins, token by token.

Pixels are a sequence by rows (directions 0 and 2) or by columns (1 and 3), in chunks of CHUNK; the last chunk
is padded with zeros. Directions 2 and 3 scan chunks and tokens from the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tfanet.fp16 import accum_dtype

CHUNK = 32


def cross_scan_chunks(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Each chunk's map of the state, h -> decay h + end: decay and end, both [batch, 4, chunks, N, D]."""
    maps = []
    for k in range(4):
        u, dt, B, _ = _operands(x, p, dt_weight, A, delta_bias, k)
        A_k = A.to(u.dtype).unflatten(0, (4, -1))[k].mT  # [N, D]
        decay, end = torch.ones_like(u[:, :, 0, None] * A_k), torch.zeros_like(u[:, :, 0, None] * A_k)
        for t in _times(k):
            a = torch.exp(dt[:, :, t, None] * A_k)
            decay, end = a * decay, a * end + (dt * u)[:, :, t, None] * B[:, :, t, :, None]
        maps.append((decay, end))
    decays, ends = zip(*maps, strict=True)
    return torch.stack(decays, 1), torch.stack(ends, 1)


def cross_scan_starts(decay: Tensor, end: Tensor) -> Tensor:
    """The state before each chunk, same shape as `end`."""
    start = torch.empty_like(end)
    for k in range(4):
        h = torch.zeros_like(end[:, 0, 0])
        chunks = range(end.shape[2])
        for c in chunks if k < 2 else reversed(chunks):
            start[:, k, c] = h
            h = decay[:, k, c] * h + end[:, k, c]
    return start


def cross_scan_rows(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, start: Tensor
) -> Tensor:
    """The sum of both scans by rows, from the states `start`: [batch, H, W, D]."""
    return sum(_scan(x, p, dt_weight, A, D, delta_bias, start, k) for k in (0, 2))


def cross_scan_columns(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, start: Tensor,
    rows: Tensor,
) -> Tensor:  # fmt: skip
    """`rows` plus both scans by columns: [batch, H, W, D]."""
    return rows + sum(_scan(x, p, dt_weight, A, D, delta_bias, start, k) for k in (1, 3))


PARTS = {
    "CrossScanChunks": cross_scan_chunks,
    "CrossScanStarts": cross_scan_starts,
    "CrossScanRows": cross_scan_rows,
    "CrossScanColumns": cross_scan_columns,
}


def _scan(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, start: Tensor, k: int
) -> Tensor:
    u, dt, B, C = _operands(x, p, dt_weight, A, delta_bias, k)
    A_k = A.to(u.dtype).unflatten(0, (4, -1))[k].mT
    h, y = start[:, k].to(u.dtype), u * D.to(u.dtype).unflatten(0, (4, -1))[k]
    for t in _times(k):
        step = (dt * u)[:, :, t, None] * B[:, :, t, :, None]
        h = torch.exp(dt[:, :, t, None] * A_k) * h + step
        y[:, :, t] += (C[:, :, t, :, None] * h).sum(2)
    height, width = x.shape[1:3]
    pixels = y.flatten(1, 2)[:, : height * width]
    if k % 2:
        return pixels.unflatten(1, (width, height)).transpose(1, 2)
    return pixels.unflatten(1, (height, width))


def _times(k: int) -> range:
    return range(CHUNK) if k < 2 else range(CHUNK - 1, -1, -1)


def _operands(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, delta_bias: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, dt, B, C of direction k: [batch, chunks, CHUNK, D or N]."""
    dtype, states = accum_dtype(x), A.shape[1]
    u, p_k = (_chunks(tensor.to(dtype), k) for tensor in (x, p.unflatten(-1, (4, -1))[..., k, :]))
    weight, bias = (tensor.to(dtype).unflatten(0, (4, -1))[k] for tensor in (dt_weight, delta_bias))
    dt, B, C = p_k.split([dt_weight.shape[1], states, states], dim=-1)
    return u, F.softplus(F.linear(dt, weight, bias)), B, C


def _chunks(x: Tensor, k: int) -> Tensor:
    """[batch, H, W, C] -> [batch, chunks, CHUNK, C] by rows, or by columns."""
    pixels = (x.transpose(1, 2) if k % 2 else x).flatten(1, 2)
    return F.pad(pixels, (0, 0, 0, -pixels.shape[1] % CHUNK)).unflatten(1, (-1, CHUNK))
