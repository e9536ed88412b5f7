"""A plugin's ahead-of-time form: a kernel's PTX, grid and scalar arguments, given to TensorRT at build time.

TensorRT launches one kernel per plugin, with the arguments inputs, scalars, outputs, and without workspace.
Grid and scalars are expressions of the inputs' sizes that TensorRT evaluates at run time, so one kernel
serves every batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorrt as trt  # pyright: ignore[reportMissingImports]
import tensorrt.plugin as trtp  # pyright: ignore[reportMissingImports]

from tfanet.errors import UserError, VerificationError
from tfanet_plugins.ptx import ALIGNMENT, chosen_capability, compile_ptx

if TYPE_CHECKING:
    import triton

    Launch = tuple[str, str, trtp.KernelLaunchParams, trtp.SymExprs]

POINTERS = {trt.float32: "*fp32", trt.float16: "*fp16"}
TYPE_NAMES = {trt.float32: "FP32", trt.float16: "FP16"}


def launch(
    kernel: triton.JITFunction,
    *,
    inputs: Sequence[trtp.TensorDesc],
    scalars: Sequence[trtp.ShapeExpr],
    outputs: Sequence[trtp.TensorDesc],
    grid: Sequence[trtp.ShapeExpr | int],
    constants: Mapping[str, Any],
    num_warps: int = 4,
) -> Launch:
    """Compile `kernel` for these tensors and return its launch, as an `aot_impl` has to.

    Raises `VerificationError` unless the kernel's parameters without the `constants` are the inputs, the
    int32 scalars and the outputs, in this order, and for kernels that `ptx.compile_ptx` rejects.
    """
    arguments = [name for name in kernel.arg_names if name not in constants]
    types = [POINTERS[tensor.dtype] for tensor in inputs]
    types += ["i32"] * len(scalars)
    types += [POINTERS[tensor.dtype] for tensor in outputs]
    if len(arguments) != len(types):
        raise VerificationError(
            f"kernel {kernel.__name__} takes {', '.join(arguments)}; the plugin has {len(inputs)} inputs, "
            f"{len(scalars)} scalars and {len(outputs)} outputs"
        )
    ptx = compile_ptx(
        kernel,
        dict(zip(arguments, types, strict=True)),
        constants,
        aligned=_aligned(arguments, inputs, scalars),
        capability=chosen_capability(),
        num_warps=num_warps,
    )
    params = trtp.KernelLaunchParams()
    params.grid_x, params.grid_y, params.grid_z = (*grid, 1, 1)[:3]
    params.block_x = ptx.threads
    params.shared_mem = ptx.shared
    extra = trtp.SymIntExprs(len(scalars))
    for i, scalar in enumerate(scalars):
        extra[i] = scalar
    return ptx.name, ptx.text, params, extra


def _aligned(
    arguments: Sequence[str], inputs: Sequence[trtp.TensorDesc], scalars: Sequence[trtp.ShapeExpr]
) -> list[str]:
    """The arguments that are multiples of `ALIGNMENT` in every run: pointers, and such fixed sizes."""
    start, end = len(inputs), len(inputs) + len(scalars)
    pairs = zip(arguments[start:end], scalars, strict=True)
    fixed = [
        name for name, scalar in pairs if scalar.is_constant and scalar.constant_value() % ALIGNMENT == 0
    ]
    return [*arguments[:start], *fixed, *arguments[end:]]


def type_name(tensor: trtp.TensorDesc) -> str:
    """The tensor's type as `autotune` spells it; raises `UserError` for a type that no kernel takes."""
    if tensor.dtype not in TYPE_NAMES:
        raise UserError(f"plugins take {' and '.join(TYPE_NAMES.values())}, not {tensor.dtype}")
    return TYPE_NAMES[tensor.dtype]


def size(tensor: trtp.TensorDesc, axis: int) -> int:
    """A size that the kernel is compiled for; raises `UserError` if it is dynamic in the network."""
    value = tensor.shape[axis]
    if value < 0:
        raise UserError(f"axis {axis} of a plugin's input must have a fixed size; only the batch can vary")
    return value
