"""FP16 arithmetic in PyTorch on a CPU as in a GPU's tensor cores: FP16 operands, FP32 sums.

Every operation on half tensors computes in FP32 and rounds its result to FP16, so a value above 65504 becomes
infinite at the operation that computes it. PyTorch's half kernels on a CPU take minutes for a pair at `base`.
ONNX Runtime's CPU provider computes most of an FP16 file in FP32 between casts, so it hides such an
overflow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tfanet.blocks import hook_blocks, tensors_of
from tfanet.errors import VerificationError
from tfanet.model import TFANet

_UNCHANGED = frozenset({"_to_copy", "clone", "copy", "lift_fresh", "detach", "empty_like"})
"""Operations that only move or cast values."""


class _HalfArithmetic(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        name = func._schema.name.split("::")
        plain = name[0] != "aten" or name[1] in _UNCHANGED or func.is_view or func._schema.is_mutable
        if plain or not any(x.dtype == torch.half for x in tensors):
            return func(*args, **kwargs)
        # Type promotion: an FP32 tensor makes the result FP32, an FP32 scalar does not.
        promoted = any(x.dtype in (torch.float32, torch.float64) and x.dim() > 0 for x in tensors)
        args, kwargs = pytree.tree_map_only(Tensor, _to_fp32, (args, kwargs))
        result = func(*args, **kwargs)
        return result if promoted else pytree.tree_map_only(Tensor, _to_half, result)


def _to_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.half else x


def _to_half(x: Tensor) -> Tensor:
    return x.half() if x.dtype == torch.float32 else x


@contextmanager
def half_arithmetic() -> Iterator[None]:
    """Within the `with` every operation on half tensors has FP16 operands, FP32 sums and an FP16 result."""
    with torch.inference_mode(), _HalfArithmetic():
        yield


def half_logits(model: TFANet, image: Tensor, tokens: Tensor) -> Tensor:
    """Mask logits float32 [B, S, S] of a half model (`deploy.deployment_model`) in half arithmetic."""
    if image.device.type == "cuda":
        with torch.inference_mode():
            return model(image, tokens)
    with half_arithmetic():
        return model(image, tokens)


def require_finite(model: TFANet, image: Tensor, tokens: Tensor) -> None:
    """Raise `VerificationError` with the first block of a half model whose output is NaN or infinite."""
    overflowing: list[str] = []

    def check(name: str, _block: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        if not overflowing and not all(bool(torch.isfinite(x.float()).all()) for x in tensors_of(output)):
            overflowing.append(name)

    with hook_blocks(model, check):
        logits = half_logits(model, image, tokens)
    if overflowing or not bool(torch.isfinite(logits).all()):
        where = f"in block {overflowing[0]}" if overflowing else "after the last block"
        raise VerificationError(
            f"FP16 overflows {where}: real FP16 gives NaN or infinity there, although ONNX Runtime's CPU may "
            "not; tfanet-eval drift --fp16 --propose FILE finds the blocks to keep FP32"
        )
