"""The function body of `LinearCrossAttention`, as ONNX text, for every runtime."""

from __future__ import annotations

from tfanet_plugins.operations import ScanSizes


def linear_cross_attention(_: ScanSizes) -> str:
    """`LinearCrossAttention`: products in float32, the output in the type of q."""
    from tfanet.ops.xnorm import EPS

    return f"""
    eps = Constant <value_float = {EPS}> ()
    embedding_of_q = Constant <value_ints = [-2]> ()
    embedding_of_v = Constant <value_ints = [-1]> ()
    head_axes = Constant <value_ints = [1, 2]> ()
    q32 = Cast <to = 1> (q)
    k32 = Cast <to = 1> (k)
    v32 = Cast <to = 1> (v)
    gamma32 = Cast <to = 1> (gamma)
    scale = Unsqueeze (gamma32, head_axes)

    vT = Transpose <perm = [0, 1, 3, 2]> (v32)
    kv = MatMul (k32, vT)
    {_xnorm("kv", "embedding_of_v")}
    {_xnorm("q32", "embedding_of_q")}
    kvT = Transpose <perm = [0, 1, 3, 2]> (kv_xnorm)
    out32 = MatMul (kvT, q32_xnorm)
    out = CastLike (out32, q)
    """


def _xnorm(x: str, axes: str) -> str:
    """`{x}_xnorm` = scale x / sqrt(sum of x^2 over `axes` + eps)."""
    return f"""
    {x}_square = Mul ({x}, {x})
    {x}_sum = ReduceSum <keepdims = 1> ({x}_square, {axes})
    {x}_sum_eps = Add ({x}_sum, eps)
    {x}_norm = Sqrt ({x}_sum_eps)
    {x}_unit = Div ({x}, {x}_norm)
    {x}_xnorm = Mul ({x}_unit, scale)
    """
