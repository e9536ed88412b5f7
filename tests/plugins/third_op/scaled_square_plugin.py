"""The TensorRT plugin of `scaled_square`."""

from scaled_square import scaled_square
from scaled_square_triton import scaled_square_kernel
from tensorrt.plugin import (
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

from tfanet_plugins.aot import launch, type_name
from tfanet_plugins.jit import run

ID = "tfanet::ScaledSquare"
BLOCKS = {1: 256, 2: 1024}


@register(ID)
def describe(x: TensorDesc, scale: TensorDesc) -> TensorDesc:
    return x.like()


@autotune(ID)
def combinations(x: TensorDesc, scale: TensorDesc, outputs: tuple[TensorDesc]) -> list[AutoTuneCombination]:
    return [AutoTuneCombination(f"FP32|FP16, {type_name(scale)}, FP32|FP16", "LINEAR", BLOCKS)]


@impl(ID)
def run_in_torch(x: Tensor, scale: Tensor, outputs: tuple[Tensor], stream: int) -> None:
    run(scaled_square, [x, scale], outputs, stream)


@aot_impl(ID)
def embed(
    x: TensorDesc, scale: TensorDesc, outputs: tuple[TensorDesc], tactic: int
) -> tuple[str, str, KernelLaunchParams, SymExprs]:
    count = x.shape_expr.numel()
    return launch(
        scaled_square_kernel,
        inputs=[x, scale],
        scalars=[count],
        outputs=outputs,
        grid=[cdiv(count, BLOCKS[tactic])],
        constants={"BLOCK": BLOCKS[tactic]},
    )
