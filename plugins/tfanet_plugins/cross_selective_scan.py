"""The TensorRT plugins that compute `CrossSelectiveScan`; shapes: `tfanet.ops.cross_selective_scan`.

A plugin is one kernel without workspace. So every kernel of `cross_selective_scan_triton` is a plugin, and
its intermediate results are outputs:

    CrossScanChunks (x, p, dt_weight, A, delta_bias) -> decay, end                    [batch, 4, chunks, N, D]
    CrossScanStarts (decay, end) -> start                                             the same
    CrossScanRows (x, p, dt_weight, A, D, delta_bias, start) -> rows                  [batch, H, W, D]
    CrossScanColumns (x, p, dt_weight, A, D, delta_bias, start, rows) -> y            [batch, H, W, D]

All outputs are FP32. `operations.OPERATIONS` has the function body that connects the four.
"""

# TensorRT reads the annotations below as types, so they must not become strings by a __future__ import.

from typing import Any, NamedTuple

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
    from_shape_expr,
    impl,
    register,
)

from tfanet.errors import UserError
from tfanet_plugins.aot import launch, size, type_name
from tfanet_plugins.jit import run

CHUNKS, STARTS, ROWS, COLUMNS = (
    f"tfanet::CrossScan{name}" for name in ("Chunks", "Starts", "Rows", "Columns")
)


class Block(NamedTuple):
    """Channels and warps of a program of the kernels over chunks."""

    channels: int
    num_warps: int


@register(CHUNKS)
def describe_chunks(
    x: TensorDesc, p: TensorDesc, dt_weight: TensorDesc, A: TensorDesc, delta_bias: TensorDesc
) -> tuple[TensorDesc, TensorDesc]:
    from tfanet.ops.cross_selective_scan_triton import CHUNK, DIRECTIONS

    batch, height, width, channels = x.shape_expr
    shape = (batch, DIRECTIONS, cdiv(height * width, CHUNK), A.shape_expr[1], channels)
    return from_shape_expr(shape, trt.float32), from_shape_expr(shape, trt.float32)


@autotune(CHUNKS)
def chunks_combinations(
    x: TensorDesc, p: TensorDesc, dt_weight: TensorDesc, A: TensorDesc, delta_bias: TensorDesc,
    outputs: tuple[TensorDesc, TensorDesc],
) -> list[AutoTuneCombination]:  # fmt: skip
    return _combinations([A, delta_bias], results=2)


@impl(CHUNKS)
def run_chunks(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, delta_bias: Tensor,
    outputs: tuple[Tensor, Tensor], stream: int,
) -> None:  # fmt: skip
    from tfanet.ops.cross_selective_scan_triton import chunk_maps

    run(chunk_maps, [x, p, dt_weight, A, delta_bias], outputs, stream)


@aot_impl(CHUNKS)
def embed_chunks(
    x: TensorDesc, p: TensorDesc, dt_weight: TensorDesc, A: TensorDesc, delta_bias: TensorDesc,
    outputs: tuple[TensorDesc, TensorDesc], tactic: int,
) -> tuple[str, str, KernelLaunchParams, SymExprs]:  # fmt: skip
    from tfanet.ops.cross_selective_scan_triton import chunk_kernel

    wide, narrow = _blocks(x)
    block = {1: wide, 2: narrow}[tactic]
    batch, _, chunks, _, channels = outputs[0].shape_expr
    return launch(
        chunk_kernel,
        inputs=[x, p, dt_weight, A, delta_bias],
        scalars=[],
        outputs=outputs,
        grid=[chunks, cdiv(channels, block.channels), batch * 2],
        constants=_constants(x, p, dt_weight, A) | {"BD": block.channels},
        num_warps=block.num_warps,
    )


@register(STARTS)
def describe_starts(decay: TensorDesc, end: TensorDesc) -> TensorDesc:
    return end.like()


@autotune(STARTS)
def starts_combinations(
    decay: TensorDesc, end: TensorDesc, outputs: tuple[TensorDesc]
) -> list[AutoTuneCombination]:
    return [AutoTuneCombination("FP32, FP32, FP32", "LINEAR", [1])]


@impl(STARTS)
def run_starts(decay: Tensor, end: Tensor, outputs: tuple[Tensor], stream: int) -> None:
    from tfanet.ops.cross_selective_scan_triton import starts

    run(starts, [decay, end], outputs, stream)


@aot_impl(STARTS)
def embed_starts(
    decay: TensorDesc, end: TensorDesc, outputs: tuple[TensorDesc], tactic: int
) -> tuple[str, str, KernelLaunchParams, SymExprs]:
    from tfanet.ops.cross_selective_scan_triton import CHUNK, START_CHANNELS, start_block, start_kernel

    batch, directions, chunks, states, channels = end.shape_expr
    return launch(
        start_kernel,
        inputs=[decay, end],
        scalars=[chunks, states * channels],
        outputs=outputs,
        grid=[cdiv(states * channels, START_CHANNELS), batch * directions],
        constants={"BC": start_block(CHUNK * size(end, 2)), "BM": START_CHANNELS},
    )


@register(ROWS)
def describe_rows(
    x: TensorDesc, p: TensorDesc, dt_weight: TensorDesc, A: TensorDesc, D: TensorDesc,
    delta_bias: TensorDesc, start: TensorDesc,
) -> TensorDesc:  # fmt: skip
    return from_shape_expr(x.shape_expr, trt.float32)


@autotune(ROWS)
def rows_combinations(
    x: TensorDesc, p: TensorDesc, dt_weight: TensorDesc, A: TensorDesc, D: TensorDesc,
    delta_bias: TensorDesc, start: TensorDesc, outputs: tuple[TensorDesc],
) -> list[AutoTuneCombination]:  # fmt: skip
    return _combinations([A, D, delta_bias], results=2)


@impl(ROWS)
def run_rows(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, start: Tensor,
    outputs: tuple[Tensor], stream: int,
) -> None:  # fmt: skip
    from tfanet.ops.cross_selective_scan_triton import merge

    run(merge, [x, p, dt_weight, A, D, delta_bias, start], outputs, stream)


@aot_impl(ROWS)
def embed_rows(
    x: TensorDesc, p: TensorDesc, dt_weight: TensorDesc, A: TensorDesc, D: TensorDesc,
    delta_bias: TensorDesc, start: TensorDesc, outputs: tuple[TensorDesc], tactic: int,
) -> tuple[str, str, KernelLaunchParams, SymExprs]:  # fmt: skip
    inputs = [x, p, dt_weight, A, D, delta_bias, start]
    return _merge(inputs, outputs, tactic, {"COLUMNS": 0, "p_rows": None})


@register(COLUMNS)
def describe_columns(
    x: TensorDesc, p: TensorDesc, dt_weight: TensorDesc, A: TensorDesc, D: TensorDesc,
    delta_bias: TensorDesc, start: TensorDesc, rows: TensorDesc,
) -> TensorDesc:  # fmt: skip
    return rows.like()


@autotune(COLUMNS)
def columns_combinations(
    x: TensorDesc, p: TensorDesc, dt_weight: TensorDesc, A: TensorDesc, D: TensorDesc,
    delta_bias: TensorDesc, start: TensorDesc, rows: TensorDesc, outputs: tuple[TensorDesc],
) -> list[AutoTuneCombination]:  # fmt: skip
    return _combinations([A, D, delta_bias], results=3)


@impl(COLUMNS)
def run_columns(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, start: Tensor,
    rows: Tensor, outputs: tuple[Tensor], stream: int,
) -> None:  # fmt: skip
    from tfanet.ops.cross_selective_scan_triton import merge

    run(merge, [x, p, dt_weight, A, D, delta_bias, start, rows], outputs, stream)


@aot_impl(COLUMNS)
def embed_columns(
    x: TensorDesc, p: TensorDesc, dt_weight: TensorDesc, A: TensorDesc, D: TensorDesc,
    delta_bias: TensorDesc, start: TensorDesc, rows: TensorDesc, outputs: tuple[TensorDesc], tactic: int,
) -> tuple[str, str, KernelLaunchParams, SymExprs]:  # fmt: skip
    return _merge([x, p, dt_weight, A, D, delta_bias, start, rows], outputs, tactic, {"COLUMNS": 1})


def _merge(
    inputs: list[TensorDesc], outputs: tuple[TensorDesc], tactic: int, constants: dict[str, Any]
) -> tuple[str, str, KernelLaunchParams, SymExprs]:
    from tfanet.ops.cross_selective_scan_triton import merge_kernel

    x, p, dt_weight, A, _, _, start, *_ = inputs
    wide, narrow = _blocks(x)
    block = {1: narrow, 2: wide}[tactic]
    batch, _, chunks, _, channels = start.shape_expr
    return launch(
        merge_kernel,
        inputs=inputs,
        scalars=[],
        outputs=outputs,
        grid=[chunks, cdiv(channels, block.channels), batch],
        constants=_constants(x, p, dt_weight, A) | {"BD": block.channels} | constants,
        num_warps=block.num_warps,
    )


def _combinations(parameters: list[TensorDesc], *, results: int) -> list[AutoTuneCombination]:
    """x, p, dt_weight all FP16 or all FP32; `parameters` in the network's types; the rest FP32."""
    types = ["FP32|FP16"] * 3 + [type_name(parameter) for parameter in parameters] + ["FP32"] * results
    return [AutoTuneCombination(", ".join(types), "LINEAR", [1, 2])]


def _blocks(x: TensorDesc) -> tuple[Block, Block]:
    """The default blocks of the chunk kernel and of the merge kernel; each is the other's second tactic."""
    from tfanet.ops.cross_selective_scan_triton import CHUNK_WARPS, MERGE_WARPS, channel_blocks

    wide, narrow = channel_blocks(size(x, 3), half=x.dtype == trt.float16)
    return Block(wide, CHUNK_WARPS), Block(narrow, MERGE_WARPS)


def _constants(x: TensorDesc, p: TensorDesc, dt_weight: TensorDesc, A: TensorDesc) -> dict[str, Any]:
    """Constants of the kernels over chunks; raises `UserError` for a map too large for int32 offsets."""
    from tfanet.ops.cross_selective_scan_triton import MAX_ELEMENTS, constants

    height, width, channels = (size(x, axis) for axis in (1, 2, 3))
    if max(height * width * channels, height * width * size(p, 3)) >= MAX_ELEMENTS:
        raise UserError(f"the 2-D scan's plugins take maps of up to {MAX_ELEMENTS - 1} values per image")
    half = x.dtype == trt.float16
    return dict(constants(height, width, channels, size(dt_weight, 1), size(A, 1), half=half))
