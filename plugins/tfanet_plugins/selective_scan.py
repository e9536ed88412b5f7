"""The TensorRT plugin `tfanet::SelectiveScan`; shapes and equation: `tfanet.ops.selective_scan`."""

# TensorRT reads the annotations below as types, so they must not become strings by a __future__ import.

import tensorrt as trt  # pyright: ignore[reportMissingImports]
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

from tfanet.ops import selective_scan
from tfanet_plugins.aot import launch, size, type_name
from tfanet_plugins.jit import run

ID = "tfanet::SelectiveScan"


@register(ID)
def describe(
    u: TensorDesc, delta: TensorDesc, A: TensorDesc, B: TensorDesc, C: TensorDesc, D: TensorDesc,
    delta_bias: TensorDesc,
) -> TensorDesc:  # fmt: skip
    y = u.like()
    y.dtype = trt.float32
    return y


@autotune(ID)
def combinations(
    u: TensorDesc, delta: TensorDesc, A: TensorDesc, B: TensorDesc, C: TensorDesc, D: TensorDesc,
    delta_bias: TensorDesc, outputs: tuple[TensorDesc],
) -> list[AutoTuneCombination]:  # fmt: skip
    """All activations FP16 or all FP32; parameters in the network's types; y FP32."""
    x = "FP32|FP16"
    a, d, bias = (type_name(parameter) for parameter in (A, D, delta_bias))
    return [AutoTuneCombination(", ".join([x, x, a, x, x, d, bias, "FP32"]), "LINEAR", _tiles(u, B))]


@impl(ID)
def run_in_torch(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor,
    outputs: tuple[Tensor], stream: int,
) -> None:  # fmt: skip
    run(selective_scan, [u, delta, A, B, C, D, delta_bias], outputs, stream)


@aot_impl(ID)
def embed(
    u: TensorDesc, delta: TensorDesc, A: TensorDesc, B: TensorDesc, C: TensorDesc, D: TensorDesc,
    delta_bias: TensorDesc, outputs: tuple[TensorDesc], tactic: int,
) -> tuple[str, str, KernelLaunchParams, SymExprs]:  # fmt: skip
    import triton

    from tfanet.ops.selective_scan_triton import alignment, selective_scan_kernel

    tile = _tiles(u, B)[tactic]
    batch, channels, length = u.shape_expr
    groups = B.shape_expr[1]
    dim = channels // groups
    states = size(A, 1)
    return launch(
        selective_scan_kernel,
        inputs=[u, delta, A, B, C, D, delta_bias],
        scalars=[dim, length],
        outputs=outputs,
        grid=[groups * cdiv(dim, tile.rows), batch],
        constants={
            "N": states,
            "BN": triton.next_power_of_2(states),
            "BR": tile.rows,
            "BL": tile.tokens,
            "ALIGN": alignment(size(u, 2)),
            "STAGES": tile.num_stages,
        },
        num_warps=tile.num_warps,
    )


def _tiles(u: TensorDesc, B: TensorDesc) -> dict:
    """Tactic -> tile: the kernel's default, then twice and half its channels, with equal work per thread."""
    from tfanet.ops.selective_scan_triton import forward_tile

    tile = forward_tile(size(u, 2), size(u, 1) // size(B, 1))
    tiles = {1: tile, 2: tile._replace(rows=2 * tile.rows, num_warps=2 * tile.num_warps)}
    if tile.rows > 1 and tile.num_warps > 1:
        tiles[3] = tile._replace(rows=tile.rows // 2, num_warps=tile.num_warps // 2)
    return tiles
