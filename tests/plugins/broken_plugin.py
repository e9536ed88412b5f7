"""A plugin whose kernel parameters do not match its inputs, scalars and outputs."""

from scaled_square_triton import scaled_square_kernel
from tensorrt.plugin import KernelLaunchParams, SymExprs, TensorDesc, aot_impl, register

from tfanet_plugins.aot import launch

ID = "tfanet::Broken"


@register(ID)
def describe(x: TensorDesc, scale: TensorDesc) -> TensorDesc:
    return x.like()


@aot_impl(ID)
def embed(
    x: TensorDesc, scale: TensorDesc, outputs: tuple[TensorDesc], tactic: int
) -> tuple[str, str, KernelLaunchParams, SymExprs]:
    return launch(
        scaled_square_kernel,
        inputs=[x, scale],
        scalars=[],
        outputs=outputs,
        grid=[1],
        constants={"BLOCK": 256},
    )
