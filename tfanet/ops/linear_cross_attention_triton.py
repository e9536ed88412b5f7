"""Triton kernels of `tfanet::linear_cross_attention`; tensors and equations in `linear_cross_attention`.

Batch and heads are one axis, BH. Products over positions use tensor cores: the stored dtype with FP32 sums.
Products of normalised values are FP32 ("ieee", not TF32).

K^T V is d x d, a sum over all keys:
- few keys (words): every program computes it and attends a block of queries: one launch of one kernel;
- many keys (an image) and few queries: a first kernel sums splits of the keys, one program a split. Partial
  sums go through memory, not atomics, so results are deterministic.
"""

# A type checker misreads Triton's constants, ranges and launches.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tfanet.ops.xnorm import EPS, inverse_norm, norm_gradient

_EPS = tl.constexpr(EPS)
SPLIT = 1024
"""Most keys that one program sums, a multiple of `BLOCK`."""
BLOCK = 128
"""Positions that a program loads at a time."""


@triton.jit
def _tile(p_x, i_bh, o_d, o_l, d, L):
    """[BD, BL] of [BH, d, L], zero outside."""
    p_x += i_bh.to(tl.int64) * d * L
    return tl.load(
        p_x + o_d[:, None] * L + o_l[None, :], mask=(o_d < d)[:, None] & (o_l < L)[None, :], other=0.0
    )


@triton.jit
def _store_tile(p_x, b_x, i_bh, o_d, o_l, d, L):
    p_x += i_bh.to(tl.int64) * d * L
    tl.store(p_x + o_d[:, None] * L + o_l[None, :], b_x, mask=(o_d < d)[:, None] & (o_l < L)[None, :])


@triton.jit
def _product(b_x, b_z):
    """[BD, BL], [BD, BL] -> [BD, BD], FP32 sums over positions."""
    return tl.dot(b_x, tl.trans(b_z), input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def _inverse_norm(b_x, axis: tl.constexpr):
    return tl.rsqrt(tl.sum(b_x * b_x, axis, keep_dims=True) + _EPS)


@triton.jit
def _attend(p_q, b_kv, b_gamma, p_out, i_bh, i_m, o_d, d, M, BM: tl.constexpr):
    """out [BD, BM] of this program's queries for K^T V [BD, BD]."""
    o_m = i_m * BM + tl.arange(0, BM)
    b_kv *= _inverse_norm(b_kv, 1) * b_gamma
    b_q = _tile(p_q, i_bh, o_d, o_m, d, M).to(tl.float32)  # [BD, BM]
    b_q *= _inverse_norm(b_q, 0) * b_gamma
    b_out = tl.dot(tl.trans(b_kv), b_q, input_precision="ieee")
    _store_tile(p_out, b_out, i_bh, o_d, o_m, d, M)


@triton.jit
def linear_cross_attention_kernel(
    p_q, p_k, p_v, p_gamma,
    heads, d, M, N,
    p_out,
    BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(M / BM), BH). Arguments in TensorRT's order: inputs, integers, output."""
    i_bh = tl.program_id(1)
    o_d = tl.arange(0, BD)
    b_kv = tl.zeros([BD, BD], tl.float32)
    for i_n in range(0, N, BN):
        o_n = i_n + tl.arange(0, BN)
        b_kv += _product(_tile(p_k, i_bh, o_d, o_n, d, N), _tile(p_v, i_bh, o_d, o_n, d, N))
    b_gamma = tl.load(p_gamma + i_bh % heads).to(tl.float32)
    _attend(p_q, b_kv, b_gamma, p_out, i_bh, tl.program_id(0), o_d, d, M, BM)


@triton.jit
def products_kernel(
    p_x, p_z,
    d, L,
    p_partial,
    BD: tl.constexpr, BL: tl.constexpr, SPAN: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Sums of x z^T over the SPAN positions of each split, FP32 [BH, splits, d, d]; grid (splits, BH).

    With UNIT, x is first scaled to length 1 at every position.
    """
    tl.static_assert(SPAN % BL == 0)
    i_s, i_bh = tl.program_id(0), tl.program_id(1)
    o_d = tl.arange(0, BD)
    b_sum = tl.zeros([BD, BD], tl.float32)
    for i_l in range(i_s * SPAN, tl.minimum(i_s * SPAN + SPAN, L), BL):
        o_l = i_l + tl.arange(0, BL)
        b_x, b_z = _tile(p_x, i_bh, o_d, o_l, d, L), _tile(p_z, i_bh, o_d, o_l, d, L)
        if UNIT:
            b_x = b_x.to(tl.float32)
            b_sum += _product(b_x * _inverse_norm(b_x, 0), b_z.to(tl.float32))
        else:
            b_sum += _product(b_x, b_z)
    o_sum = (i_bh * tl.num_programs(0) + i_s) * d * d + o_d[:, None] * d + o_d[None, :]
    tl.store(p_partial + o_sum, b_sum, mask=(o_d < d)[:, None] & (o_d < d)[None, :])


@triton.jit
def _square(p_x, i_x, o_d, d):
    """[BD, BD] of matrix `i_x` of [..., d, d], zero outside."""
    mask = (o_d < d)[:, None] & (o_d < d)[None, :]
    return tl.load(p_x + i_x * d * d + o_d[:, None] * d + o_d[None, :], mask=mask, other=0.0)


@triton.jit
def attend_kernel(
    p_q, p_partial, p_gamma,
    heads, d, M, splits,
    p_out,
    BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The output from the partial sums of K^T V; grid (ceil(M / BM), BH)."""
    i_bh = tl.program_id(1)
    o_d = tl.arange(0, BD)
    b_kv = tl.zeros([BD, BD], tl.float32)
    for i_s in range(splits):
        b_kv += _square(p_partial, i_bh * splits + i_s, o_d, d)
    b_gamma = tl.load(p_gamma + i_bh % heads).to(tl.float32)
    _attend(p_q, b_kv, b_gamma, p_out, i_bh, tl.program_id(0), o_d, d, M, BM)


@triton.jit
def query_gradient_kernel(
    p_q, p_dout, p_mix,
    d, M,
    p_dq,
    BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """dq = the gradient of q's normalisation at mix dout, mix [BH, d, d]; grid (ceil(M / BM), BH)."""
    i_bh = tl.program_id(1)
    o_d = tl.arange(0, BD)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    b_q = _tile(p_q, i_bh, o_d, o_m, d, M).to(tl.float32)  # [BD, BM]
    b_dout = _tile(p_dout, i_bh, o_d, o_m, d, M).to(tl.float32)  # [BD, BM]
    b_dunit = tl.dot(_square(p_mix, i_bh, o_d, d), b_dout, input_precision="ieee")
    b_inverse = _inverse_norm(b_q, 0)
    b_unit = b_q * b_inverse
    b_dq = (b_dunit - b_unit * tl.sum(b_unit * b_dunit, 0, keep_dims=True)) * b_inverse
    _store_tile(p_dq, b_dq, i_bh, o_d, o_m, d, M)


@triton.jit
def key_value_gradient_kernel(
    p_k, p_v, p_dkv,
    d, N,
    p_dk, p_dv,
    BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dk = dkv v and dv = dkv^T k, dkv [BH, d, d]; grid (ceil(N / BN), BH)."""
    i_bh = tl.program_id(1)
    o_d = tl.arange(0, BD)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    b_dkv = _square(p_dkv, i_bh, o_d, d)  # [BD, BD]
    b_v = _tile(p_v, i_bh, o_d, o_n, d, N).to(tl.float32)  # [BD, BN]
    _store_tile(p_dk, tl.dot(b_dkv, b_v, input_precision="ieee"), i_bh, o_d, o_n, d, N)
    b_k = _tile(p_k, i_bh, o_d, o_n, d, N).to(tl.float32)  # [BD, BN]
    _store_tile(p_dv, tl.dot(tl.trans(b_dkv), b_k, input_precision="ieee"), i_bh, o_d, o_n, d, N)


def padded(d: int) -> int:
    """A head's channels in the kernels: a power of two, at least 16 for tensor cores."""
    return max(triton.next_power_of_2(d), 16)


def _products(x: Tensor, z: Tensor, *, unit: bool = False) -> Tensor:
    """Partial sums [BH, splits, d, d] of x z^T over positions; x, z [batch, h, d, L] of one dtype."""
    batch, heads, d, length = x.shape
    splits = triton.cdiv(length, SPLIT)
    partial = torch.empty(batch * heads, splits, d, d, dtype=torch.float32, device=x.device)
    products_kernel[(splits, batch * heads)](
        x, z, d, length, partial, BD=padded(d), BL=BLOCK, SPAN=SPLIT, UNIT=unit, enable_fp_fusion=True
    )
    return partial


def linear_cross_attention_forward(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """XNorm(Q) XNorm(K^T V) [batch, h, d, M] in q's dtype."""
    q, k, v, gamma = (x.contiguous() for x in (q, k, v.to(k.dtype), gamma))
    batch, heads, d, queries = q.shape
    keys = k.shape[3]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grid = (triton.cdiv(queries, BLOCK), batch * heads)
    shape = {"BD": padded(d), "BM": BLOCK, "enable_fp_fusion": True}
    with torch.cuda.device_of(q):
        if keys <= SPLIT:
            linear_cross_attention_kernel[grid](
                q, k, v, gamma, heads, d, queries, keys, out, BN=BLOCK, **shape
            )
        else:
            partial = _products(k, v)
            attend_kernel[grid](q, partial, gamma, heads, d, queries, partial.shape[1], out, **shape)
    return out


def linear_cross_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and gamma, each in its input's dtype.

    With unit matrices U_kv and U_q, out = gamma^2 U_kv^T U_q. The only sum over positions is S = U_q dout^T
    [d, d]: dU_kv = gamma^2 S and dgamma = 2 gamma <U_kv, S>.
    """
    dtypes = [x.dtype for x in (q, k, v, gamma)]
    dout, q, k, v = (x.contiguous() for x in (dout.to(q.dtype), q, k, v.to(k.dtype)))
    batch, heads, d, queries = q.shape
    keys = k.shape[3]
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    shape = {"BD": padded(d), "enable_fp_fusion": True}
    with torch.cuda.device_of(q):
        kv = _products(k, v).sum(1).view(batch, heads, d, d)
        queries_dout = _products(q, dout, unit=True).sum(1).view(batch, heads, d, d)
        scale = gamma.float()[:, None, None]
        inverse = inverse_norm(kv, -1)
        unit = kv * inverse
        dgamma = 2 * (scale * unit * queries_dout).sum((0, 2, 3))
        dkv = norm_gradient(scale**2 * queries_dout, unit, inverse, -1)
        query_gradient_kernel[(triton.cdiv(queries, BLOCK), batch * heads)](
            q, dout, scale**2 * unit, d, queries, dq, BM=BLOCK, **shape
        )
        key_value_gradient_kernel[(triton.cdiv(keys, BLOCK), batch * heads)](
            k, v, dkv, d, keys, dk, dv, BN=BLOCK, **shape
        )
    dq, dk, dv, dgamma = (x.to(dtype) for x, dtype in zip((dq, dk, dv, dgamma), dtypes, strict=True))
    return dq, dk, dv, dgamma
