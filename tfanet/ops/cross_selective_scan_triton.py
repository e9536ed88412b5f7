"""Triton kernels of `tfanet::cross_selective_scan`; tensors and meaning in `cross_selective_scan`.

The map is stored channels last, so a pixel's channels are contiguous in every order of the pixels, and no
traversal is copied. Rows and columns are two families of orders, each with a forward and a reversed
direction. A chunk is CHUNK tokens of a family, the same pixels in both directions. Chunks run in parallel:

1. `chunk_kernel`: every chunk as one affine map h -> a h + s of the state, for each direction;
2. `start_kernel`: the state before every chunk, by composing these maps in order;
3. `merge_kernel`: the outputs of every chunk from its initial state, summed over the directions; the columns'
   launch adds to the rows' result.

Each pass reads the map once, and p; four maps, four deltas and four outputs never exist. A single pass with
the carry in registers would have too few programs for a GPU at batch 1. dt is computed where it is used, as a
tensor-core product with FP32 sums. Sizes are constexpr: with run-time sizes a third of the instructions
computed addresses. CHUNK is limited by a thread's registers.

Gradients use `traversals` and the gradients of the 1-D scan.
"""

# A type checker misreads Triton's constants, ranges and launches.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tfanet.ops.selective_scan_triton import LOG2E, compose, compose_with_previous, softplus
from tfanet.ops.traversals import DIRECTIONS

CHUNK = 32
CHUNK_WARPS, MERGE_WARPS = 2, 1
START_CHANNELS = 16
MAX_ELEMENTS = 2**31
"""Elements of one image's map, exclusive; offsets inside it are 32 bits."""


@triton.jit
def _pixels(i_c, i_f, H: tl.constexpr, W: tl.constexpr, BT: tl.constexpr):
    """Time, pixel in raster order and mask of a chunk's tokens, [BT, 1]; by rows, or columns if i_f is 1."""
    o_t = (i_c * BT + tl.arange(0, BT))[:, None]
    return o_t, tl.where(i_f == 1, (o_t % H) * W + o_t // H, o_t), o_t < H * W


@triton.jit
def _steps(p_p, p_W, p_bias, o_p, m_t, o_c, m_c, k, D: tl.constexpr, R: tl.constexpr, BR: tl.constexpr):
    """dt [BT, BD] of direction k. Tokens past the end have a dt too; their x is 0."""
    b_raw = tl.zeros([o_p.shape[0], o_c.shape[1]], tl.float32)
    for i_r in tl.range(0, R, BR, num_stages=1):
        o_r = i_r + tl.arange(0, BR)
        b_p = tl.load(p_p + o_p + o_r[None, :], mask=m_t & (o_r < R)[None, :], other=0.0)  # [BT, BR]
        o_w = (k * D + o_c) * R + o_r[:, None]
        b_w = tl.load(p_W + o_w, mask=m_c & (o_r < R)[:, None], other=0.0)  # [BR, BD]
        if b_p.dtype != b_w.dtype:
            b_p, b_w = b_p.to(tl.float32), b_w.to(tl.float32)
        b_raw = tl.dot(b_p, b_w, b_raw, input_precision="ieee")
    b_raw += tl.load(p_bias + k * D + o_c, mask=m_c, other=0.0).to(tl.float32)
    return softplus(b_raw)


@triton.jit
def chunk_kernel(
    p_x, p_p, p_W, p_A, p_bias,
    p_decay, p_end,
    H: tl.constexpr, W: tl.constexpr, D: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Decay and end of every chunk, FP32 [batch, 4, chunks, N, D]; grid (chunks, ceil(D / BD), 2 * batch)."""
    i_c, i_f, i_b = tl.program_id(0), tl.program_id(2) % 2, tl.program_id(2).to(tl.int64) // 2
    o_t, o_px, m_t = _pixels(i_c, i_f, H, W, BT)
    o_c = (tl.program_id(1) * BD + tl.arange(0, BD))[None, :]
    m_c = o_c < D
    p_x += i_b * (H * W * D)
    p_p += i_b * (H * W * 4 * (R + 2 * N))
    b_x = tl.load(p_x + o_px * D + o_c, mask=m_t & m_c, other=0.0).to(tl.float32)  # [BT, BD]
    for reverse in tl.static_range(2):
        k = i_f + 2 * reverse
        o_p = o_px * (4 * (R + 2 * N)) + k * (R + 2 * N)  # [BT, 1]
        b_dt = _steps(p_p, p_W, p_bias, o_p, m_t, o_c, m_c, k, D, R, BR)  # [BT, BD]
        o_last = i_c * BT if reverse else i_c * BT + BT - 1
        for n in range(N):
            b_A = tl.load(p_A + (k * D + o_c) * N + n, mask=m_c, other=0.0).to(tl.float32) * LOG2E  # [1, BD]
            b_B = tl.load(p_p + o_p + R + n, mask=m_t, other=0.0).to(tl.float32)  # [BT, 1]
            b_a, b_s = tl.exp2(b_dt * b_A), b_dt * b_x * b_B
            _, b_h = tl.associative_scan((b_a, b_s), 0, compose, reverse=reverse == 1)  # [BT, BD]
            o_s = ((i_b * 4 + k) * tl.num_programs(0) + i_c) * (N * D) + n * D + o_c
            tl.store(p_decay + o_s, tl.exp2(tl.sum(b_dt, 0, keep_dims=True) * b_A), mask=m_c)
            tl.store(p_end + o_s, tl.sum(tl.where(o_t == o_last, b_h, 0.0), 0, keep_dims=True), mask=m_c)


@triton.jit
def start_kernel(
    p_decay, p_end,
    chunks, M,
    p_start,
    BC: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """State before every chunk, [batch, 4, chunks, M = N*D]; grid (ceil(M / BM), 4 * batch)."""
    o_m = (tl.program_id(0) * BM + tl.arange(0, BM))[None, :]
    m_m = o_m < M
    i_map = tl.program_id(1).to(tl.int64)
    reverse = tl.program_id(1) % 4 >= 2
    b_carry = tl.zeros([1, BM], tl.float32)
    for i in range(0, chunks, BC):
        o_i = (i + tl.arange(0, BC))[:, None]
        m_x = (o_i < chunks) & m_m
        o_c = tl.where(reverse, chunks - 1 - o_i, o_i)
        o_x = (i_map * chunks + o_c) * M + o_m
        b_a = tl.load(p_decay + o_x, mask=m_x, other=1.0)  # [BC, BM]
        b_s = tl.load(p_end + o_x, mask=m_x, other=0.0)
        b_one, b_zero = tl.full([BC, BM], 1.0, tl.float32), tl.zeros([BC, BM], tl.float32)
        b_a, b_s, b_p, b_r = tl.associative_scan((b_a, b_s, b_one, b_zero), 0, compose_with_previous)
        tl.store(p_start + o_x, b_p * b_carry + b_r, mask=m_x)
        b_end = b_a * b_carry + b_s
        b_carry = tl.sum(tl.where(o_i == i + BC - 1, b_end, 0.0), 0, keep_dims=True)  # [1, BM]


@triton.jit
def merge_kernel(
    p_x, p_p, p_W, p_A, p_D, p_bias, p_start, p_rows,
    p_y,
    H: tl.constexpr, W: tl.constexpr, D: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sum of the rows' directions, or of p_rows and the columns'; grid (chunks, ceil(D / BD), batch).

    p_rows may be p_y: a program reads only the elements that it writes, and reads them first.
    """
    i_c, i_b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    _, o_px, m_t = _pixels(i_c, COLUMNS, H, W, BT)
    o_c = (tl.program_id(1) * BD + tl.arange(0, BD))[None, :]
    m_c = o_c < D
    o_x = o_px * D + o_c
    p_x += i_b * (H * W * D)
    p_y += i_b * (H * W * D)
    p_p += i_b * (H * W * 4 * (R + 2 * N))
    b_x = tl.load(p_x + o_x, mask=m_t & m_c, other=0.0).to(tl.float32)  # [BT, BD]
    b_D = tl.load(p_D + COLUMNS * D + o_c, mask=m_c, other=0.0).to(tl.float32)  # [1, BD]
    b_D += tl.load(p_D + (COLUMNS + 2) * D + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_y = b_D * b_x
    for reverse in tl.static_range(2):
        k = COLUMNS + 2 * reverse
        o_p = o_px * (4 * (R + 2 * N)) + k * (R + 2 * N)  # [BT, 1]
        b_dt = _steps(p_p, p_W, p_bias, o_p, m_t, o_c, m_c, k, D, R, BR)  # [BT, BD]
        for n in range(N):
            b_A = tl.load(p_A + (k * D + o_c) * N + n, mask=m_c, other=0.0).to(tl.float32) * LOG2E  # [1, BD]
            b_B = tl.load(p_p + o_p + R + n, mask=m_t, other=0.0).to(tl.float32)  # [BT, 1]
            b_C = tl.load(p_p + o_p + R + N + n, mask=m_t, other=0.0).to(tl.float32)  # [BT, 1]
            b_a, b_s = tl.exp2(b_dt * b_A), b_dt * b_x * b_B
            b_a, b_h = tl.associative_scan((b_a, b_s), 0, compose, reverse=reverse == 1)  # [BT, BD]
            o_s = ((i_b * 4 + k) * tl.num_programs(0) + i_c) * (N * D) + n * D + o_c
            b_y += b_C * (b_h + b_a * tl.load(p_start + o_s, mask=m_c, other=0.0))
    if COLUMNS:
        b_y += tl.load(p_rows + i_b * (H * W * D) + o_x, mask=m_t & m_c, other=0.0)
    tl.store(p_y + o_x, b_y, mask=m_t & m_c)


def constants(
    height: int, width: int, channels: int, rank: int, states: int, *, half: bool
) -> dict[str, int]:
    """Constants of `chunk_kernel` and `merge_kernel` except BD; `half` is for FP16 or BF16 maps."""
    # A tensor-core product takes up to 64 ranks at once; an FP32 product 16, which fit in registers.
    ranks = min(max(16, triton.next_power_of_2(rank)), 64) if half else 16
    return {"H": height, "W": width, "D": channels, "R": rank, "N": states, "BT": CHUNK, "BR": ranks}


def channel_blocks(channels: int, *, half: bool) -> tuple[int, int]:
    """Channels a program of `chunk_kernel` and of `merge_kernel`."""
    block = max(16, triton.next_power_of_2(channels))
    return (min(block, 64), min(block, 32)) if half else (min(block, 32), 16)


def start_block(pixels: int) -> int:
    """Chunks that a program of `start_kernel` takes at a time."""
    return min(triton.next_power_of_2(triton.cdiv(pixels, CHUNK)), 64)


def cross_selective_scan_forward(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """y [batch, H, W, D], FP32."""
    x, p, dt_weight, A, D, delta_bias = (t.contiguous() for t in (x, p, dt_weight, A, D, delta_bias))
    with torch.cuda.device_of(x):
        start = starts(*chunk_maps(x, p, dt_weight, A, delta_bias))
        y = merge(x, p, dt_weight, A, D, delta_bias, start)
        return merge(x, p, dt_weight, A, D, delta_bias, start, y, out=y)


def chunk_maps(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Decay and end of every chunk, FP32 [batch, 4, chunks, N, D]; inputs contiguous, on this device."""
    batch, height, width, channels = x.shape
    chunks = triton.cdiv(height * width, CHUNK)
    decay, end = (
        torch.empty(batch, DIRECTIONS, chunks, A.shape[1], channels, dtype=torch.float32, device=x.device)
        for _ in range(2)
    )
    sizes, block, _ = _launch_constants(x, p, dt_weight, A)
    chunk_kernel[(chunks, triton.cdiv(channels, block), 2 * batch)](
        x, p, dt_weight, A, delta_bias, decay, end, BD=block, num_warps=CHUNK_WARPS, **sizes
    )
    return decay, end


def starts(decay: Tensor, end: Tensor) -> Tensor:
    """The state before every chunk, as `end` in shape and dtype; inputs contiguous, on this device."""
    start = torch.empty_like(end)
    batch, _, chunks, states, channels = end.shape
    start_kernel[(triton.cdiv(states * channels, START_CHANNELS), DIRECTIONS * batch)](
        decay, end, chunks, states * channels, start,
        BC=start_block(chunks * CHUNK), BM=START_CHANNELS, enable_fp_fusion=True,
    )  # fmt: skip
    return start


def merge(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, start: Tensor,
    rows: Tensor | None = None, *, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The sum of the directions by rows, or of `rows` and those by columns, FP32 [batch, H, W, D].

    Inputs contiguous, on this device. The result is written to `out` if given, which may be `rows`.
    """
    batch, height, width, channels = x.shape
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device) if out is None else out
    sizes, _, block = _launch_constants(x, p, dt_weight, A)
    merge_kernel[(triton.cdiv(height * width, CHUNK), triton.cdiv(channels, block), batch)](
        x, p, dt_weight, A, D, delta_bias, start, rows, y,
        BD=block, COLUMNS=int(rows is not None), num_warps=MERGE_WARPS, **sizes,
    )  # fmt: skip
    return y


def _launch_constants(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor
) -> tuple[dict[str, int | bool], int, int]:
    """The constants of `chunk_kernel` and `merge_kernel`, and BD of each."""
    half = torch.float32 not in (x.dtype, p.dtype, dt_weight.dtype)
    _, height, width, channels = x.shape
    sizes = constants(height, width, channels, dt_weight.shape[1], A.shape[1], half=half)
    return sizes | {"enable_fp_fusion": True}, *channel_blocks(channels, half=half)
