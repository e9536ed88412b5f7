"""FP16 error of every named block against FP32.

Two errors per block, each the root mean square of the difference relative to that of the FP32 output:

- `own`: of the block alone in FP16, on its inputs in the FP32 model: the error that enters in this block;
- `half`: of the same output in the FP16 model: the error accumulated so far. `onnx` and `plan` likewise.

FP16 means `tfanet_export.half_arithmetic`. ONNX Runtime's CPU provider computes FP16 files mostly in FP32,
so `onnx` shows the error of rounded weights and never an overflow.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tfanet.blocks import blocks_of, hook_blocks, tensors_of
from tfanet.model import TFANet
from tfanet_export.deploy import deployment_model
from tfanet_export.half_arithmetic import half_arithmetic, half_logits


@dataclass(frozen=True)
class Pair:
    """One sample: image uint8 [S, S, 3], tokens int64 [L], target mask [H, W] at the image's own size."""

    image: np.ndarray
    tokens: np.ndarray
    target: np.ndarray

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """The model's inputs, with batch 1."""
        return torch.from_numpy(self.image[None]), torch.from_numpy(self.tokens[None])


@dataclass
class RelativeError:
    """RMS error relative to the RMS of the reference; infinite if any value is NaN or infinite."""

    squares: float = 0.0
    reference: float = 0.0

    def add(self, expected: Sequence[Tensor], actual: Sequence[Tensor]) -> None:
        for left, right in zip(expected, actual, strict=True):
            reference = left.double()
            self.reference += float(reference.square().sum())
            error = float((right.double() - reference).square().sum())
            self.squares += error if math.isfinite(error) else math.inf

    @property
    def value(self) -> float:
        if self.squares == 0:
            return 0.0
        return math.sqrt(self.squares / self.reference) if self.reference else math.inf


@dataclass
class BlockDrift:
    """The errors of one block."""

    name: str
    own: RelativeError = field(default_factory=RelativeError)
    half: RelativeError = field(default_factory=RelativeError)
    onnx: RelativeError | None = None
    plan: RelativeError | None = None
    largest: float = 0.0
    """Largest magnitude in its FP32 output; FP16's range ends at 65504."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values; an infinite error is the string `overflow`."""
        errors = {"own": self.own, "half": self.half}
        errors |= {"onnx": self.onnx} if self.onnx else {}
        errors |= {"plan": self.plan} if self.plan else {}
        plain = {k: e.value if math.isfinite(e.value) else "overflow" for k, e in errors.items()}
        return {"block": self.name} | plain | {"largest": self.largest}


def measure(
    model: TFANet,
    pairs: Iterable[Pair],
    *,
    keep_fp32: Collection[str] = (),
    onnx: bool = True,
    plan: Callable[[Pair], Mapping[str, list[Tensor]]] | None = None,
) -> list[BlockDrift]:
    """The drift of every block of `model` in FP16 over `pairs`, in order of computation.

    Blocks in `keep_fp32` stay FP32. `onnx` also measures a temporary file in ONNX Runtime that outputs every
    block; `plan` is the function that `plan_with_blocks` yields.
    """
    model = model.eval()
    half = deployment_model(model, fp16=True, keep_fp32=keep_fp32)
    drifts: dict[str, BlockDrift] = {}
    runtimes = {"onnx": _onnx_with_blocks(half) if onnx else None, "plan": plan}
    for pair in pairs:
        expected = _add_pair(model, half, pair, keep_fp32, drifts)
        for field_name, run in runtimes.items():
            for name, values in (run(pair) if run else {}).items():
                error = getattr(drifts[name], field_name) or RelativeError()
                error.add(expected[name], values)
                setattr(drifts[name], field_name, error)
    return list(drifts.values())


def by_error(drifts: Sequence[BlockDrift]) -> list[str]:
    """Block names by `own` error, most to least; overflow first."""
    return [drift.name for drift in sorted(drifts, key=lambda drift: -drift.own.value)]


def _add_pair(
    model: TFANet, half: TFANet, pair: Pair, keep_fp32: Collection[str], drifts: dict[str, BlockDrift]
) -> dict[str, list[Tensor]]:
    """Add one pair's `own` and `half` errors to `drifts`; returns the blocks' FP32 outputs."""
    half_blocks = blocks_of(half)
    expected: dict[str, list[Tensor]] = {}

    def in_fp32(name: str, _block: Any, args: Any, kwargs: Any, output: Any) -> None:
        drift = drifts.setdefault(name, BlockDrift(name))
        expected[name] = [x.clone() for x in tensors_of(output)]  # the next block may write in place
        drift.largest = max(drift.largest, *(float(x.abs().max()) for x in expected[name]))
        dtype = torch.float32 if name in keep_fp32 else torch.float16
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (args, kwargs)
        )
        with half_arithmetic():
            drift.own.add(expected[name], tensors_of(half_blocks[name](*args, **kwargs)))

    def in_fp16(name: str, _block: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        drifts[name].half.add(expected[name], tensors_of(output))

    with torch.inference_mode(), hook_blocks(model, in_fp32):
        model(*pair.inputs)
    with hook_blocks(half, in_fp16):
        half_logits(half, *pair.inputs)
    return expected


def _onnx_with_blocks(half: TFANet) -> Callable[[Pair], dict[str, list[Tensor]]]:
    """A function that runs the half model in ONNX Runtime and returns its blocks' outputs."""
    import onnxruntime

    from tfanet_export.storage import written_onnx
    from tfanet_export.trace import trace_with_blocks

    proto, names = trace_with_blocks(half, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blocks.onnx"
        with written_onnx(proto, path, path):
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # hides warnings about nodes that are not constant-folded
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [name for block in names.values() for name in block]

    def run(pair: Pair) -> dict[str, list[Tensor]]:
        values = session.run(outputs, {"image": pair.image[None], "tokens": pair.tokens[None]})
        tensors = dict(zip(outputs, (torch.from_numpy(np.asarray(v)) for v in values), strict=True))
        return {block: [tensors[name] for name in some] for block, some in names.items()}

    return run
