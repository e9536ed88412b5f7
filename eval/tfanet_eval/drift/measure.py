"""Where FP16 goes wrong: the error of every named block, and the fewest blocks to keep FP32.

Two figures for a block, both root mean square of the difference over that of the FP32 output:

- `own`: the block alone in FP16, on the inputs that it has in the FP32 model: the error that enters here;
- `half`: the same output in the FP16 model: the error that has gathered so far. `onnx` and `plan` likewise.

Half means `tfanet_export.half_arithmetic`. ONNX Runtime's CPU provider computes FP16 files mostly in FP32,
so `onnx` shows what the rounding of weights costs and never an overflow.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tfanet.blocks import Blocks, blocks_of, hook_blocks, tensors_of
from tfanet.data.preprocess import logits_to_size
from tfanet.model import TFANet
from tfanet_eval.metrics import SegmentationMetrics
from tfanet_export.deploy import deployment_model
from tfanet_export.half_arithmetic import half_arithmetic, half_logits


@dataclass(frozen=True)
class Pair:
    """One sample: image uint8 [S, S, 3], tokens int64 [L], truth [H, W] at the picture's own size."""

    image: np.ndarray
    tokens: np.ndarray
    truth: np.ndarray


@dataclass
class RelativeError:
    """Root mean square error over the reference's; infinite once a value is NaN or infinite."""

    squares: float = 0.0
    reference: float = 0.0

    def add(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        for left, right in zip(expected, found, strict=True):
            wide, other = left.double(), right.double()
            self.reference += float(wide.square().sum())
            error = float((other - wide).square().sum())
            self.squares += error if math.isfinite(error) else math.inf

    @property
    def value(self) -> float:
        if self.squares == 0:
            return 0.0
        return math.sqrt(self.squares / self.reference) if self.reference else math.inf


@dataclass
class BlockDrift:
    """What was measured of one block."""

    name: str
    own: RelativeError = field(default_factory=RelativeError)
    half: RelativeError = field(default_factory=RelativeError)
    onnx: RelativeError | None = None
    plan: RelativeError | None = None
    largest: float = 0.0
    """Largest magnitude in its FP32 output; FP16 ends at 65504."""

    def to_dict(self) -> dict[str, Any]:
        """Plain figures; an infinite error (overflow) is the word `overflow`, for JSON knows no infinity."""
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
    plan: Callable[[Pair], dict[str, list[Tensor]]] | None = None,
) -> list[BlockDrift]:
    """The drift of every block of `model` in FP16 over `pairs`, in order of computation.

    Blocks in `keep_fp32` stay FP32. With `onnx` ONNX Runtime runs a temporary file whose outputs are the
    blocks', too; `plan` is what `drift_plan.watched_plan` gives.
    """
    model = model.eval()
    half = deployment_model(model, fp16=True, keep_fp32=keep_fp32)
    alone = blocks_of(half)
    found: dict[str, BlockDrift] = {}
    runtime = _watched_session(half) if onnx else None
    for pair in pairs:
        expected = _pair_drift(model, half, alone, pair, keep_fp32, found)
        for name, values in (runtime(pair) if runtime else {}).items():
            drift = found[name]
            drift.onnx = drift.onnx or RelativeError()
            drift.onnx.add(expected[name], values)
        for name, values in (plan(pair) if plan else {}).items():
            drift = found[name]
            drift.plan = drift.plan or RelativeError()
            drift.plan.add(expected[name], values)
    return list(found.values())


def _pair_drift(
    model: TFANet,
    half: TFANet,
    alone: Blocks,
    pair: Pair,
    keep_fp32: Collection[str],
    found: dict[str, BlockDrift],
) -> dict[str, list[Tensor]]:
    """Add one pair's errors to `found`; returns the blocks' FP32 outputs.

    `alone` are the blocks of `half`.
    """
    inputs = (torch.from_numpy(pair.image[None]), torch.from_numpy(pair.tokens[None]))
    expected: dict[str, list[Tensor]] = {}

    def reference(name: str, _block: Any, args: Any, kwargs: Any, output: Any) -> None:
        drift = found.setdefault(name, BlockDrift(name))
        expected[name] = [x.clone() for x in tensors_of(output)]  # the next one may write in place
        drift.largest = max(drift.largest, *(float(x.abs().max()) for x in expected[name]))
        dtype = torch.float32 if name in keep_fp32 else torch.float16
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (args, kwargs)
        )
        with half_arithmetic():
            drift.own.add(expected[name], tensors_of(alone[name](*args, **kwargs)))

    def gathered(name: str, _block: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        found[name].half.add(expected[name], tensors_of(output))

    with torch.inference_mode(), hook_blocks(model, reference):
        model(*inputs)
    with hook_blocks(half, gathered):
        half_logits(half, *inputs)
    return expected


def _watched_session(half: TFANet) -> Callable[[Pair], dict[str, list[Tensor]]]:
    """A function that runs the half model in ONNX Runtime and gives its blocks' outputs."""
    import onnxruntime

    from tfanet_export.storage import written_onnx
    from tfanet_export.trace import trace_with_blocks

    proto, names = trace_with_blocks(half, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watched.onnx"
        with written_onnx(proto, path, path):
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # it warns of nodes that it merely does not fold
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = [name for some in names.values() for name in some]

    def run(pair: Pair) -> dict[str, list[Tensor]]:
        values = session.run(wanted, {"image": pair.image[None], "tokens": pair.tokens[None]})
        tensors = dict(zip(wanted, (torch.from_numpy(np.asarray(v)) for v in values), strict=True))
        return {block: [tensors[name] for name in some] for block, some in names.items()}

    return run


def by_error(drifts: Sequence[BlockDrift]) -> list[str]:
    """Block names, those that bring in the most error first; overflow comes before all."""
    return [d.name for d in sorted(drifts, key=lambda d: -d.own.value)]


@dataclass(frozen=True)
class Proposal:
    """The outcome of `propose`; oIoU 0..1, None where logits are not finite."""

    keep_fp32: tuple[str, ...]
    fp32: float
    half: float | None
    repaired: float | None
    within: bool
    """Whether the budget is kept; it need not be, for what lies between blocks is FP16 in any case."""
    tried: int
    """Sets of blocks that were evaluated."""


def propose(
    model: TFANet,
    pairs: Sequence[Pair],
    order: Sequence[str],
    *,
    budget: float = 0.1,
    step: Callable[[int], None] | None = None,
) -> Proposal:
    """A small set of blocks to keep FP32 so that FP16 loses at most `budget` points of oIoU on `pairs`.

    `order` is that of `by_error`. Prefixes of it are doubled until one keeps the budget, the shortest such is
    found by bisection (a longer prefix is taken to lose no more), then every member that can go, goes: no
    block of the result can be left out alone. `step` hears of each set that was tried.
    """
    wanted = oiou(model, pairs)
    assert wanted is not None, "the FP32 model gives logits that are not finite"
    seen: dict[frozenset[str], float | None] = {}

    def keeps(names: Collection[str]) -> bool:
        key = frozenset(names)
        if key not in seen:
            seen[key] = oiou(deployment_model(model, fp16=True, keep_fp32=key), pairs, half=True)
            if step:
                step(len(seen))
        value = seen[key]
        return value is not None and 100 * (wanted - value) <= budget

    low, high = 0, 0
    while not keeps(order[:high]) and high < len(order):
        low, high = high, min(max(2 * high, 1), len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(order[:middle]) else (middle, high)
    chosen = list(order[:high])
    if keeps(chosen):
        for name in reversed(order[:high]):
            rest = [other for other in chosen if other != name]
            chosen = rest if keeps(rest) else chosen
    within, half = keeps(chosen), seen[frozenset()]
    return Proposal(tuple(chosen), wanted, half, seen[frozenset(chosen)], within, len(seen))


def oiou(model: TFANet, pairs: Iterable[Pair], *, half: bool = False) -> float | None:
    """oIoU 0..1 of a model over `pairs`, in FP16 arithmetic with `half`; None if a logit is not finite."""
    metrics = SegmentationMetrics()
    for pair in pairs:
        inputs = (torch.from_numpy(pair.image[None]), torch.from_numpy(pair.tokens[None]))
        with torch.inference_mode():
            logits = (half_logits(model, *inputs) if half else model.eval()(*inputs))[0].numpy()
        if not np.isfinite(logits).all():
            return None
        metrics.update(logits_to_size(logits, *pair.truth.shape), pair.truth)
    return metrics.result()["oIoU"]
