"""The FP32 islands of the half model: what is stored or computed in FP32, by module, with the reason.

`half_` makes a model half: FP16 weights and activations, except `ISLANDS`. An island has up to three parts:

- parameters, buffers and submodules that `half_` leaves in FP32: `Island.keeps`;
- operands that the module's forward casts with `to_fp32`;
- an operation of `tfanet.ops`, which sums in `accum_dtype` whatever dtype its tensors are stored in.

A precision file (`tfanet_export.precision`) adds blocks of one model to them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Island:
    """What one module or operation keeps in FP32."""

    where: tuple[str, ...]
    """Classes of modules, or an operation of `tfanet.ops`, by their import path."""
    computes: str
    result: str
    """The dtype of the result."""
    reason: str
    keeps: tuple[str, ...] = ()
    """Parameters, buffers and submodules of the class that stay FP32."""


ISLANDS = (
    Island(
        where=("tfanet.model.TFANet",),
        computes="normalisation of the image",
        result="FP16",
        reason="FP16 rounds the mean, up to 124, to 1/16 of a grey level. TensorRT takes uint8 as a network "
        "input and as the input of a cast, nowhere else, so there is a cast in any case.",
        keeps=("image_mean", "image_std"),
    ),
    Island(
        where=("tfanet.vmamba.SS2D",),
        computes="the scan's A = -exp(A_logs), D and bias of delta; `out_norm` of the scan's result",
        result="FP16",
        reason="A state sums up to 14,400 tokens, and their rounding errors with them. A trained model's "
        "scan gives more than 65,504; `out_norm` scales it into FP16's range.",
        keeps=("A_logs", "Ds", "dt_projs_bias", "out_norm"),
    ),
    Island(
        where=("tfanet.wfdm.WFDM", "tfanet.baseline.ConvDecoder"),
        computes="foreground minus background score, and its resize to the image's size",
        result="FP32, the mask logits",
        reason="The logits are compared with 0: rounding them to FP16 would move the mask's border.",
    ),
    Island(
        where=("tfanet.ops.selective_scan",),
        computes="softplus, exponential, state and output",
        result="FP32",
        reason="With slow decay a trained model's states pass 1,000,000.",
    ),
    Island(
        where=("tfanet.ops.cross_selective_scan",),
        computes="delta, softplus, exponential, state and output",
        result="FP32",
        reason="As `selective_scan`; the four directions are summed as well.",
    ),
    Island(
        where=("tfanet.ops.linear_cross_attention",),
        computes="the sums K^T V and the norms",
        result="dtype of q",
        reason="K^T V sums over up to 14,400 pixels, beyond FP16's range.",
    ),
)


def accum_dtype(x: Tensor) -> torch.dtype:
    """The dtype of an operation's sums: FP32; for FP64 tensors FP64, so that gradients can be checked."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def to_fp32(x: Tensor) -> Tensor:
    """`x` in FP32: the entry of an island in a module's forward."""
    return x.float()


def fp32_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the parameters and buffers of `model` that `ISLANDS` keeps in FP32."""
    keeps = {where: island.keeps for island in ISLANDS for where in island.where}
    for path, module in model.named_modules():
        for base in type(module).__mro__:
            for kept in keeps.get(f"{base.__module__}.{base.__qualname__}", ()):
                for name, tensor in _tensors(module):
                    if f"{name}.".startswith(f"{kept}."):
                        yield f"{path}.{name}".removeprefix("."), tensor


def half_(model: nn.Module, blocks: Mapping[str, nn.Module], keep_fp32: Collection[str] = ()) -> None:
    """Convert `model` in place to FP16, except `ISLANDS` and the blocks `keep_fp32`.

    `blocks` are the model's blocks by name (`tfanet.blocks.blocks_of`), `keep_fp32` some of their names.
    """
    kept = {id(tensor) for _, tensor in fp32_tensors(model)}
    kept |= {id(tensor) for name in keep_fp32 for _, tensor in _tensors(blocks[name])}
    for _, tensor in _tensors(model):
        if tensor.is_floating_point() and id(tensor) not in kept:
            tensor.data = tensor.data.half()
    if keep_fp32:
        for name, block in blocks.items():
            _cast_inputs(block, torch.float32 if name in keep_fp32 else torch.float16)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _cast_inputs(block: nn.Module, dtype: torch.dtype) -> None:
    """Let `block` cast its floating-point inputs to `dtype`.

    Its outputs keep their dtype, so a value beyond FP16's range passes from one FP32 block to the next.
    """

    def hook(_block: nn.Module, args: Any, kwargs: Any) -> Any:
        return pytree.tree_map_only(
            Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (args, kwargs)
        )

    block.register_forward_pre_hook(hook, with_kwargs=True)
