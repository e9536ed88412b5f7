"""Search for a small set of blocks to keep FP32, so that FP16 loses little oIoU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tfanet.data.preprocess import logits_to_size
from tfanet.model import TFANet
from tfanet_eval.drift.measure import Pair
from tfanet_eval.metrics import SegmentationMetrics
from tfanet_export.deploy import deployment_model
from tfanet_export.half_arithmetic import half_logits


@dataclass(frozen=True)
class Proposal:
    """The result of `propose`; oIoU 0..1, None if a logit is NaN or infinite."""

    keep_fp32: tuple[str, ...]
    fp32: float
    half: float | None
    repaired: float | None
    within: bool
    """Whether the loss is within the budget; it may not be, because everything between blocks stays FP16."""
    tried: int
    """Number of sets of blocks that were evaluated."""


def propose(
    model: TFANet,
    pairs: Sequence[Pair],
    order: Sequence[str],
    *,
    budget: float = 0.1,
    on_progress: Callable[[int], None] | None = None,
) -> Proposal:
    """A small set of blocks to keep FP32, so that FP16 loses at most `budget` points of oIoU on `pairs`.

    `order` is the result of `by_error`. The search doubles a prefix of `order` until the loss is within the
    budget, bisects for the shortest such prefix (assuming that a longer one loses no more), then removes
    every block that is not needed: no block of the result can be left out alone. `on_progress` gets the
    number of sets tried so far.
    """
    expected = oiou(model, pairs)
    assert expected is not None, "the FP32 model gives NaN or infinite logits"
    results: dict[frozenset[str], float | None] = {}

    def within(names: Collection[str]) -> bool:
        key = frozenset(names)
        if key not in results:
            results[key] = oiou(deployment_model(model, fp16=True, keep_fp32=key), pairs, half=True)
            if on_progress:
                on_progress(len(results))
        value = results[key]
        return value is not None and 100 * (expected - value) <= budget

    low, high = 0, 0
    while not within(order[:high]) and high < len(order):
        low, high = high, min(max(2 * high, 1), len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if within(order[:middle]) else (middle, high)
    chosen = list(order[:high])
    if within(chosen):
        for name in reversed(order[:high]):
            rest = [other for other in chosen if other != name]
            chosen = rest if within(rest) else chosen
    fits, half = within(chosen), results[frozenset()]
    return Proposal(tuple(chosen), expected, half, results[frozenset(chosen)], fits, len(results))


def oiou(model: TFANet, pairs: Iterable[Pair], *, half: bool = False) -> float | None:
    """oIoU 0..1 of a model over `pairs`, in FP16 arithmetic if `half`; None if a logit is NaN or infinite."""
    metrics = SegmentationMetrics()
    for pair in pairs:
        with torch.inference_mode():
            logits = half_logits(model, *pair.inputs) if half else model.eval()(*pair.inputs)
        values = logits[0].numpy()
        if not np.isfinite(values).all():
            return None
        metrics.update(logits_to_size(values, *pair.target.shape), pair.target)
    return metrics.result()["oIoU"]
