"""X-Norm linear cross-attention, equations 8 and 9 of the TFANet paper, for one scale.

    linear_cross_attention(q, k, v, gamma) -> out

| tensor   | shape            | meaning                                             |
|----------|------------------|-----------------------------------------------------|
| `q`      | [batch, h, d, M] | queries of one modality, M positions                |
| `k`, `v` | [batch, h, d, N] | keys and values of the other modality, N positions  |
| `gamma`  | [h]              | learnable scale, one a head                         |
| `out`    | [batch, h, d, M] | dtype of `q`                                        |

    XNorm(x) = gamma x / sqrt(sum over d of x^2 + EPS)                             (9)
    out      = XNorm(Q) XNorm(K^T V)                                               (8)

Channels come first, as in convolutions. K^T V [d, d] is normalised over the axis of V, Q over its channels.
Time and memory are linear in M + N: there is no M x N matrix. Sums and norms are FP32 whatever the tensors'
dtype (`tfanet.fp16`). Masked positions have k = v = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfanet.fp16 import accum_dtype
from tfanet.ops.dispatch import use_triton
from tfanet.ops.xnorm import EPS, inverse_norm, norm_gradient

MAX_HEAD = 64
"""Largest d for which the d x d sums fit a Triton program's registers."""


def linear_cross_attention_loop(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """The equations with explicit loops over batch, heads and positions: the tests' reference."""
    dtype = accum_dtype(q)
    out = torch.zeros(q.shape, dtype=dtype, device=q.device)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            kv = torch.zeros(q.shape[2], q.shape[2], dtype=dtype, device=q.device)
            for n in range(k.shape[3]):
                kv = kv + torch.outer(k[b, h, :, n].to(dtype), v[b, h, :, n].to(dtype))
            kv = gamma[h].to(dtype) * kv / torch.sqrt((kv**2).sum(dim=1, keepdim=True) + EPS)
            for m in range(q.shape[3]):
                query = q[b, h, :, m].to(dtype)
                query = gamma[h].to(dtype) * query / torch.sqrt((query**2).sum() + EPS)
                out[b, h, :, m] = query @ kv
    return out.to(q.dtype)


@torch.library.custom_op("tfanet::linear_cross_attention", mutates_args=())
def linear_cross_attention(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """XNorm(Q) XNorm(K^T V); shapes and equations in the module's docstring.

    Raises `ValueError` if the shapes do not match.
    """
    _check(q, k, v, gamma)
    return _forward(q, k, v, gamma)


def _forward(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    dtype = accum_dtype(q)
    kv = k.to(dtype) @ v.to(dtype).mT  # [batch, h, d, d]
    scale = gamma.to(dtype)[:, None, None]
    kv = kv * (inverse_norm(kv, -1) * scale)
    query = q.to(dtype)
    return (kv.mT @ (query * (inverse_norm(query, -2) * scale))).to(q.dtype)


@linear_cross_attention.register_kernel("cuda")
def _on_gpu(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    _check(q, k, v, gamma)
    if not use_triton(q) or q.shape[2] > MAX_HEAD:
        return _forward(q, k, v, gamma)
    from tfanet.ops.linear_cross_attention_triton import linear_cross_attention_forward

    return linear_cross_attention_forward(q, k, v, gamma)


@linear_cross_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    _check(q, k, v, gamma)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@torch.library.custom_op("tfanet::linear_cross_attention_backward", mutates_args=())
def linear_cross_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `linear_cross_attention` with respect to q, k, v and gamma, given dL/dout."""
    return _backward(dout, q, k, v, gamma)


def _backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accum_dtype(q)
    keys, values, query, g = (x.to(dtype) for x in (k, v, q, dout))
    scale = gamma.to(dtype)[:, None, None]
    kv = keys @ values.mT
    kv_inverse, q_inverse = inverse_norm(kv, -1), inverse_norm(query, -2)
    kv_unit, q_unit = kv * kv_inverse, query * q_inverse

    d_kv_unit = (q_unit @ g.mT) * scale**2
    d_q_unit = (kv_unit @ g) * scale**2
    # out = gamma^2 (unit kv)^T (unit q), so dgamma = 2 sum(out g) / gamma, here without the division.
    dgamma = 2 * (scale * (kv_unit @ g) * q_unit).sum((0, 2, 3))
    d_kv = norm_gradient(d_kv_unit, kv_unit, kv_inverse, -1)
    d_q = norm_gradient(d_q_unit, q_unit, q_inverse, -2)
    return d_q.to(q.dtype), (d_kv @ values).to(k.dtype), (d_kv.mT @ keys).to(v.dtype), dgamma.to(gamma.dtype)


@linear_cross_attention_backward.register_kernel("cuda")
def _backward_on_gpu(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not use_triton(q) or q.shape[2] > MAX_HEAD:
        return _backward(dout, q, k, v, gamma)
    from tfanet.ops import linear_cross_attention_triton as kernels

    return kernels.linear_cross_attention_backward(dout, q, k, v, gamma)


@linear_cross_attention_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, dgamma = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, gamma))
    return dq, dk, dv, dgamma


def _keep_inputs(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx, dout: Tensor) -> tuple[Tensor, ...]:
    return linear_cross_attention_backward(dout, *ctx.saved_tensors)


linear_cross_attention.register_autograd(_gradient, setup_context=_keep_inputs)


def _check(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4:
        raise ValueError(f"q and k must be [batch, h, d, positions], not {[*q.shape]} and {[*k.shape]}")
    if k.shape[:3] != q.shape[:3] or v.shape != k.shape:
        raise ValueError(f"q {[*q.shape]}, k {[*k.shape]} and v {[*v.shape]} do not fit each other")
    if list(gamma.shape) != [q.shape[1]]:
        raise ValueError(f"gamma must be [{q.shape[1]}], not {[*gamma.shape]}")
