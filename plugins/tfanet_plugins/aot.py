"""What a plugin hands TensorRT at build time: a kernel's PTX, its grid, and its scalar arguments.

TensorRT launches one kernel a plugin, with the arguments inputs, scalars, outputs, and no memory besides.
Grid and scalars are expressions of the inputs' sizes, which TensorRT evaluates at run time; so one kernel
serves every batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorrt as trt  # pyright: ignore[reportMissingImports]
import tensorrt.plugin as trtp  # pyright: ignore[reportMissingImports]

from tfanet.errors import UserError, VerificationError
from tfanet_plugins.ptx import ALIGNMENT, compile_ptx
from tfanet_plugins.target import chosen_capability

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
    """Compile `kernel` for these tensors and describe its launch: what an `aot_impl` returns.

    The kernel's parameters without the `constants` must be the inputs, the int32 scalars and the outputs, in
    this order; else `VerificationError`, as for what `ptx.compile_ptx` refuses.
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
    """The arguments that are multiples of `ALIGNMENT` in every run: pointers, and fixed sizes that are."""
    first, after = len(inputs), len(inputs) + len(scalars)
    pairs = zip(arguments[first:after], scalars, strict=True)
    fixed = [
        name for name, scalar in pairs if scalar.is_constant and scalar.constant_value() % ALIGNMENT == 0
    ]
    return [*arguments[:first], *fixed, *arguments[after:]]


def type_name(tensor: trtp.TensorDesc) -> str:
    """The tensor's type as `autotune` writes it; `UserError` for a type that no kernel takes."""
    if tensor.dtype not in TYPE_NAMES:
        raise UserError(f"plugins take {' and '.join(TYPE_NAMES.values())}, not {tensor.dtype}")
    return TYPE_NAMES[tensor.dtype]


def size(tensor: trtp.TensorDesc, axis: int) -> int:
    """A size that the kernel is compiled for; `UserError` where the network leaves it open."""
    value = tensor.shape[axis]
    if value < 0:
        raise UserError(f"axis {axis} of a plugin's input must have a fixed size; only the batch may vary")
    return value
