"""Triton kernels of `tfanet::selective_scan`, forward and backward; tensors and equation in `selective_scan`.

A program scans BR channels of one group along L in chunks of BL tokens. The states of a chunk come from one
associative scan over the pairs (decay, input) of h_t = a_t h_(t-1) + s_t; the last state is carried to the
next chunk. Nothing is divided by a decay; registers are FP32.

Reasons for the shapes:
- One launch reads u and delta once, so a plugin (one kernel, no workspace) can run the forward. Splitting L
  over programs would need a second pass; the model's smallest scan has 512 rows, enough for a GPU.
- B and C are shared by a program's channels. More channels a program save little: neighbouring programs read
  B and C from L2.
- ALIGN, a power of two that divides L, allows loads of up to 16 bytes; it is 1 for odd lengths.
- Tokens past the end need no mask: no state after them is stored, and in the backward their dy is 0.
- The backward recomputes the states from their values at chunk starts. Sums over channels are partial sums in
  memory, not atomics, so gradients are deterministic.
"""

# A type checker misreads Triton's constants, ranges and launches.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)


class Tile(NamedTuple):
    """What a program processes at a time: `rows` channels x `tokens`, both powers of two."""

    rows: int
    tokens: int
    num_warps: int
    num_stages: int


@triton.jit
def log1p_unit(z):
    """log(1 + z) for z in [0, 1], relative error 2e-7, by a minimax polynomial.

    The logarithm of 1 + z, rounded, would lose the digits of small z.
    """
    b_p = 0.005232693627476692
    b_p = b_p * z - 0.02950523979961872
    b_p = b_p * z + 0.07822596281766891
    b_p = b_p * z - 0.13663247227668762
    b_p = b_p * z + 0.19106008112430573
    b_p = b_p * z - 0.2484298199415207
    b_p = b_p * z + 0.3331909775733948
    b_p = b_p * z - 0.4999949336051941
    b_p = b_p * z + 0.9999999403953552
    return b_p * z


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + log1p_unit(tl.exp2(-tl.abs(x) * LOG2E))


@triton.jit
def compose(a1, s1, a2, s2):
    """The affine map h -> a1 h + s1 followed by h -> a2 h + s2, as its two coefficients."""
    return a1 * a2, a2 * s1 + s2


@triton.jit
def compose_with_previous(a1, s1, p1, r1, a2, s2, p2, r2):
    """`compose`, and the map h -> p h + r to the state before the last token."""
    return a1 * a2, a2 * s1 + s2, a1 * p2, p2 * s1 + r2


@triton.jit
def _rows_of(D, BR: tl.constexpr):
    """This program's group, batch item, channels within all groups [BR] and their mask."""
    blocks = tl.cdiv(D, BR)
    i_g = tl.program_id(0) // blocks
    o_d = (tl.program_id(0) % blocks) * BR + tl.arange(0, BR)
    return i_g, tl.program_id(1), i_g * D + o_d, o_d < D


@triton.jit
def _starts(i_b, i_g, o_r, D, L, BR: tl.constexpr, N: tl.constexpr):
    """Offsets of the rows [BR, 1] in [batch, K*D, L] and of the group in [batch, K, N, L]."""
    groups = tl.num_programs(0) // tl.cdiv(D, BR)
    o_row = ((i_b * groups * D + o_r).to(tl.int64) * L)[:, None]
    o_group = (i_b * groups + i_g).to(tl.int64) * N * L
    return o_row, o_group


@triton.jit
def selective_scan_kernel(
    p_u, p_delta, p_A, p_B, p_C, p_D, p_bias,
    D, L,
    p_y,
    N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
    ALIGN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (K * ceil(D / BR), batch). Arguments in TensorRT's order: inputs, integers, output."""
    i_g, i_b, o_r, m_r = _rows_of(D, BR)
    L = L // ALIGN * ALIGN  # alignment hint for the compiler
    o_row, o_group = _starts(i_b, i_g, o_r, D, L, BR, N)
    o_n = tl.arange(0, BN)[None, :]
    b_bias = tl.load(p_bias + o_r, mask=m_r, other=0.0).to(tl.float32)[:, None]  # [BR, 1]
    b_D = tl.load(p_D + o_r, mask=m_r, other=0.0).to(tl.float32)[:, None]  # [BR, 1]
    b_A = tl.load(p_A + o_r[:, None] * N + o_n, mask=m_r[:, None] & (o_n < N), other=0.0)  # [BR, BN]
    b_A = b_A.to(tl.float32) * LOG2E
    b_carry = tl.zeros([BR, BN], tl.float32)
    for i_l in tl.range(0, L, BL, num_stages=STAGES):
        o_l = (i_l + tl.arange(0, BL))[None, :]
        m_l = o_l < L
        m_x = m_r[:, None] & m_l
        b_u = tl.load(p_u + o_row + o_l, mask=m_x, other=0.0).to(tl.float32)  # [BR, BL]
        b_delta = tl.load(p_delta + o_row + o_l, mask=m_x, other=0.0)
        b_dt = softplus(b_delta.to(tl.float32) + b_bias)  # [BR, BL]
        b_y = b_D * b_u
        for n in range(N):
            b_B = tl.load(p_B + o_group + n * L + o_l, mask=m_l, other=0.0).to(tl.float32)  # [1, BL]
            b_C = tl.load(p_C + o_group + n * L + o_l, mask=m_l, other=0.0).to(tl.float32)  # [1, BL]
            b_a = tl.exp2(b_dt * _column(b_A, n, N))
            b_a, b_h = tl.associative_scan((b_a, b_dt * b_u * b_B), 1, compose)  # [BR, BL]
            b_h += b_a * _column(b_carry, n, N)
            b_y += b_C * b_h
            b_end = tl.sum(tl.where(o_l == i_l + BL - 1, b_h, 0.0), 1, keep_dims=True)  # [BR, 1]
            b_carry = tl.where(o_n == n, b_end, b_carry)
        tl.store(p_y + o_row + o_l, b_y, mask=m_x)


@triton.jit
def _column(b_x, n, N: tl.constexpr):
    """Column n of [BR, BN] as [BR, 1]."""
    if N == 1:
        return b_x
    else:
        o_n = tl.arange(0, b_x.shape[1])[None, :]
        return tl.sum(tl.where(o_n == n, b_x, 0.0), 1, keep_dims=True)


def forward_tile(length: int, dim: int) -> Tile:
    """About 2,048 elements a program, 16 a thread: below 128 registers, with loads in flight."""
    tokens = min(max(triton.next_power_of_2(length), 32), 1024)
    return Tile(min(2048 // tokens, 8, triton.next_power_of_2(dim)), tokens, num_warps=4, num_stages=2)


def alignment(length: int) -> int:
    """The largest power of two, up to 16, that divides `length`."""
    return min(length & -length, 16)


def selective_scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor,
    tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """y [batch, K*D, L], FP32."""
    u, delta, A, B, C, D, delta_bias = (x.contiguous() for x in (u, delta, A, B, C, D, delta_bias))
    batch, channels, length = u.shape
    groups, states = B.shape[1], B.shape[2]
    dim = channels // groups
    tile = tile or forward_tile(length, dim)
    y = torch.empty(u.shape, dtype=torch.float32, device=u.device)
    with torch.cuda.device_of(u):
        selective_scan_kernel[(groups * triton.cdiv(dim, tile.rows), batch)](
            u, delta, A, B, C, D, delta_bias, dim, length, y,
            N=states, BN=triton.next_power_of_2(states), BR=tile.rows, BL=tile.tokens,
            ALIGN=alignment(length), STAGES=tile.num_stages, num_warps=tile.num_warps, enable_fp_fusion=True,
        )  # fmt: skip
    return y


@triton.jit
def selective_scan_starts_kernel(
    p_u, p_delta, p_A, p_B, p_bias,
    D, L,
    p_start,
    N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
    ALIGN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The state before every chunk, [batch, K*D, chunks, N], FP32. Grid as in the forward."""
    i_g, i_b, o_r, m_r = _rows_of(D, BR)
    L = L // ALIGN * ALIGN  # alignment hint for the compiler
    o_row, o_group = _starts(i_b, i_g, o_r, D, L, BR, N)
    o_n = tl.arange(0, BN)[None, :]
    b_bias = tl.load(p_bias + o_r, mask=m_r, other=0.0).to(tl.float32)[:, None]  # [BR, 1]
    b_A = tl.load(p_A + o_r[:, None] * N + o_n, mask=m_r[:, None] & (o_n < N), other=0.0)  # [BR, BN]
    b_A = b_A.to(tl.float32) * LOG2E
    b_carry = tl.zeros([BR, BN], tl.float32)
    p_start += (o_row // L) * tl.cdiv(L, BL) * N + o_n  # [BR, BN]
    for i_l in tl.range(0, L, BL, num_stages=STAGES):
        tl.store(p_start + (i_l // BL) * N, b_carry, mask=m_r[:, None] & (o_n < N))
        o_l = (i_l + tl.arange(0, BL))[None, :]
        m_l = o_l < L
        m_x = m_r[:, None] & m_l
        b_u = tl.load(p_u + o_row + o_l, mask=m_x, other=0.0).to(tl.float32)  # [BR, BL]
        b_delta = tl.load(p_delta + o_row + o_l, mask=m_x, other=0.0)
        b_dt = softplus(b_delta.to(tl.float32) + b_bias)  # [BR, BL]
        b_decay = tl.sum(b_dt, 1, keep_dims=True)  # [BR, 1]
        for n in range(N):
            b_B = tl.load(p_B + o_group + n * L + o_l, mask=m_l, other=0.0).to(tl.float32)  # [1, BL]
            b_An = _column(b_A, n, N)
            _, b_h = tl.associative_scan((tl.exp2(b_dt * b_An), b_dt * b_u * b_B), 1, compose)  # [BR, BL]
            b_end = tl.sum(tl.where(o_l == i_l + BL - 1, b_h, 0.0), 1, keep_dims=True)  # [BR, 1]
            b_end += tl.exp2(b_decay * b_An) * _column(b_carry, n, N)
            b_carry = tl.where(o_n == n, b_end, b_carry)


@triton.jit
def selective_scan_backward_kernel(
    p_dy, p_u, p_delta, p_A, p_B, p_C, p_D, p_bias, p_start,
    D, L,
    p_du, p_ddelta, p_dA, p_dB, p_dC, p_dD, p_dbias,
    N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Chunks from the last to the first. Grid as in the forward; dA [batch, K*D, N], dD, dbias [batch, K*D]
    and dB, dC [batch, K, ceil(D / BR), N, L] are FP32 and still to be summed over batch or blocks.

    With x_t = C_t dy_t the adjoint of h_t is g_t = x_t + q_(t+1), where q_t = a_t g_t is the adjoint that
    token t - 1 receives. Both scans return the state before the last token as well, so h_(t-1) and q_(t+1)
    need no division and no subtraction that would cancel.
    """
    i_g, i_b, o_r, m_r = _rows_of(D, BR)
    L = L // ALIGN * ALIGN  # alignment hint for the compiler
    o_row, o_group = _starts(i_b, i_g, o_r, D, L, BR, N)
    blocks = tl.cdiv(D, BR)
    o_partial = o_group * blocks + (tl.program_id(0) % blocks).to(tl.int64) * N * L
    o_n = tl.arange(0, BN)[None, :]
    m_n = m_r[:, None] & (o_n < N)
    b_bias = tl.load(p_bias + o_r, mask=m_r, other=0.0).to(tl.float32)[:, None]  # [BR, 1]
    b_D = tl.load(p_D + o_r, mask=m_r, other=0.0).to(tl.float32)[:, None]  # [BR, 1]
    b_A = tl.load(p_A + o_r[:, None] * N + o_n, mask=m_n, other=0.0).to(tl.float32)  # [BR, BN]
    b_dA = tl.zeros([BR, BN], tl.float32)
    b_carry = tl.zeros([BR, BN], tl.float32)
    b_dD = tl.zeros([BR, 1], tl.float32)
    b_dbias = tl.zeros([BR, 1], tl.float32)
    o_one = (o_row // L) * N + o_n  # [BR, BN]
    p_start += (o_row // L) * tl.cdiv(L, BL) * N + o_n  # [BR, BN]
    for i in tl.range(0, tl.cdiv(L, BL)):
        i_c = tl.cdiv(L, BL) - 1 - i
        o_l = (i_c * BL + tl.arange(0, BL))[None, :]
        m_l = o_l < L
        m_x = m_r[:, None] & m_l
        b_start = tl.load(p_start + i_c * N, mask=m_n, other=0.0)  # [BR, BN]
        b_dy = tl.load(p_dy + o_row + o_l, mask=m_x, other=0.0).to(tl.float32)  # [BR, BL]
        b_u = tl.load(p_u + o_row + o_l, mask=m_x, other=0.0).to(tl.float32)
        b_x = tl.load(p_delta + o_row + o_l, mask=m_x, other=0.0).to(tl.float32) + b_bias
        b_z = tl.exp2(-tl.abs(b_x) * LOG2E)
        b_dt = tl.maximum(b_x, 0.0) + log1p_unit(b_z)
        b_gB = tl.zeros([BR, BL], tl.float32)
        b_ddt = tl.zeros([BR, BL], tl.float32)
        for n in range(N):
            b_B = tl.load(p_B + o_group + n * L + o_l, mask=m_l, other=0.0).to(tl.float32)  # [1, BL]
            b_C = tl.load(p_C + o_group + n * L + o_l, mask=m_l, other=0.0).to(tl.float32)  # [1, BL]
            b_An = _column(b_A, n, N)
            b_a = tl.exp2(b_dt * (b_An * LOG2E))
            b_s = b_dt * b_u * b_B
            b_one, b_zero = tl.full([BR, BL], 1.0, tl.float32), tl.zeros([BR, BL], tl.float32)
            _, _, b_p, b_r = tl.associative_scan((b_a, b_s, b_one, b_zero), 1, compose_with_previous)
            b_before = b_p * _column(b_start, n, N) + b_r  # h_(t-1)
            b_dx = b_C * b_dy
            _, _, b_p, b_r = tl.associative_scan(
                (b_a, b_a * b_dx, b_one, b_zero), 1, compose_with_previous, reverse=True
            )
            b_g = b_dx + b_p * _column(b_carry, n, N) + b_r
            b_q = b_a * b_g
            b_first = tl.sum(tl.where(o_l == i_c * BL, b_q, 0.0), 1, keep_dims=True)  # [BR, 1]
            b_carry = tl.where(o_n == n, b_first, b_carry)

            b_dC = tl.sum((b_a * b_before + b_s) * b_dy, 0, keep_dims=True)  # [1, BL]
            b_dB = tl.sum(b_g * b_dt * b_u, 0, keep_dims=True)  # [1, BL]
            tl.store(p_dC + o_partial + n * L + o_l, b_dC, mask=m_l)
            tl.store(p_dB + o_partial + n * L + o_l, b_dB, mask=m_l)
            b_dlog = b_q * b_before
            b_dA += tl.where(o_n == n, tl.sum(b_dlog * b_dt, 1, keep_dims=True), 0.0)
            b_ddt += b_dlog * b_An
            b_gB += b_g * b_B
        b_sigmoid = tl.where(b_x >= 0, 1.0, b_z) / (1.0 + b_z)
        b_ddelta = (b_ddt + b_gB * b_u) * b_sigmoid
        tl.store(p_du + o_row + o_l, b_gB * b_dt + b_D * b_dy, mask=m_x)
        tl.store(p_ddelta + o_row + o_l, b_ddelta, mask=m_x)
        b_dD += tl.sum(b_dy * b_u, 1, keep_dims=True)
        b_dbias += tl.sum(b_ddelta, 1, keep_dims=True)
    tl.store(p_dA + o_one, b_dA, mask=m_n)
    tl.store(p_dD + o_row // L, b_dD, mask=m_r[:, None])
    tl.store(p_dbias + o_row // L, b_dbias, mask=m_r[:, None])


def backward_tile(length: int, dim: int, states: int) -> Tile:
    """Eight elements a thread, two with several states: scans of four values need many registers."""
    tokens = min(max(triton.next_power_of_2(length), 32), 128 if states == 1 else 64)
    rows = min(4, triton.next_power_of_2(dim))
    return Tile(rows, tokens, num_warps=2 if states == 1 else 4, num_stages=1)


def selective_scan_backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the seven inputs, each in its input's dtype; dy [batch, K*D, L]."""
    dy, u, delta, A, B, C, D, delta_bias = (x.contiguous() for x in (dy, u, delta, A, B, C, D, delta_bias))
    batch, channels, length = u.shape
    groups, states = B.shape[1], B.shape[2]
    dim = channels // groups
    tile = tile or backward_tile(length, dim, states)
    blocks, chunks = triton.cdiv(dim, tile.rows), triton.cdiv(length, tile.tokens)

    def fp32(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=u.device)

    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dA, dD, dbias = fp32(batch, channels, states), fp32(batch, channels), fp32(batch, channels)
    dB, dC = (fp32(batch, groups, blocks, states, length) for _ in range(2))
    start = fp32(batch, channels, chunks, states)
    grid = (groups * blocks, batch)
    common = {
        "N": states, "BN": triton.next_power_of_2(states), "BR": tile.rows, "BL": tile.tokens,
        "ALIGN": alignment(length), "num_warps": tile.num_warps, "enable_fp_fusion": True,
    }  # fmt: skip
    with torch.cuda.device_of(u):
        selective_scan_starts_kernel[grid](
            u, delta, A, B, delta_bias, dim, length, start, STAGES=tile.num_stages, **common
        )
        selective_scan_backward_kernel[grid](
            dy, u, delta, A, B, C, D, delta_bias, start, dim, length,
            du, ddelta, dA, dB, dC, dD, dbias, **common,
        )  # fmt: skip
    sums = dA.sum(0), dB.sum(2), dC.sum(2), dD.sum(0), dbias.sum(0)
    dA, dB, dC, dD, dbias = (s.to(x.dtype) for s, x in zip(sums, (A, B, C, D, delta_bias), strict=True))
    return du, ddelta, dA, dB, dC, dD, dbias
