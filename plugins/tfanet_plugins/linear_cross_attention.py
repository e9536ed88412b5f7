"""The TensorRT plugin `tfanet::LinearCrossAttention`; equations: `tfanet.ops.linear_cross_attention`.

One kernel computes K^T V and the attention; every program of a batch item's head repeats K^T V. For many keys
and few queries a second kernel for partial sums would use more programs, but a plugin is one launch without
workspace.
"""

# TensorRT reads the annotations below as types, so they must not become strings by a __future__ import.

from typing import NamedTuple

from tensorrt.plugin import (  # pyright: ignore[reportMissingImports]
    AutoTuneCombination,
    KernelLaunchParams,
    SymExprs,
    Tensor,
    TensorDesc,
    aot_impl,
    autotune,
    cdiv,
    impl,
    register,
)

from tfanet.ops import linear_cross_attention
from tfanet_plugins.aot import launch, size, type_name
from tfanet_plugins.jit import run

ID = "tfanet::LinearCrossAttention"


class Block(NamedTuple):
    """Positions that a program processes at a time."""

    queries: int
    keys: int
    num_warps: int


@register(ID)
def describe(q: TensorDesc, k: TensorDesc, v: TensorDesc, gamma: TensorDesc) -> TensorDesc:
    return q.like()


@autotune(ID)
def combinations(
    q: TensorDesc, k: TensorDesc, v: TensorDesc, gamma: TensorDesc, outputs: tuple[TensorDesc]
) -> list[AutoTuneCombination]:
    """All activations FP16 or all FP32; gamma in the network's type."""
    scale, blocks = type_name(gamma), _blocks(q)
    tactics = {"FP32": [1], "FP16": list(blocks)}
    return [
        AutoTuneCombination(f"{x}, {x}, {x}, {scale}, {x}", "LINEAR", numbers)
        for x, numbers in tactics.items()
    ]


@impl(ID)
def run_in_torch(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, outputs: tuple[Tensor], stream: int) -> None:
    run(linear_cross_attention, [q, k, v, gamma], outputs, stream)


@aot_impl(ID)
def embed(
    q: TensorDesc, k: TensorDesc, v: TensorDesc, gamma: TensorDesc, outputs: tuple[TensorDesc], tactic: int
) -> tuple[str, str, KernelLaunchParams, SymExprs]:
    from tfanet.ops.linear_cross_attention_triton import linear_cross_attention_kernel, padded

    block = _blocks(q)[tactic]
    batch, heads, width, queries = q.shape_expr
    return launch(
        linear_cross_attention_kernel,
        inputs=[q, k, v, gamma],
        scalars=[heads, width, queries, k.shape_expr[3]],
        outputs=outputs,
        grid=[cdiv(queries, block.queries), batch * heads],
        constants={"BD": padded(size(q, 2)), "BM": block.queries, "BN": block.keys},
        num_warps=block.num_warps,
    )


def _blocks(q: TensorDesc) -> dict[int, Block]:
    """Tactic -> block: the kernel's default, then one for few queries and many keys; smaller for wide heads.

    The second is for FP16 only: in FP32 its keys and values exceed a plugin's shared memory.
    """
    from tfanet.ops.linear_cross_attention_triton import BLOCK, padded

    keys = max(16, BLOCK * 16 // padded(size(q, 2)))
    return {1: Block(keys, keys, 4), 2: Block(32, 2 * keys, 8)}
