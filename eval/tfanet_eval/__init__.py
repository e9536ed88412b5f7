"""Evaluate any engine, check parity with its PyTorch reference, predict masks, benchmark, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfanet.lazy import lazy_attributes

if TYPE_CHECKING:
    from tfanet_eval.evaluation import Evaluation, evaluate
    from tfanet_eval.metrics import SegmentationMetrics
    from tfanet_eval.prediction import predict
    from tfanet_eval.timing import Latency

__all__ = [
    "Evaluation",
    "Latency",
    "SegmentationMetrics",
    "evaluate",
    "predict",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Evaluation": "tfanet_eval.evaluation",
        "Latency": "tfanet_eval.timing",
        "SegmentationMetrics": "tfanet_eval.metrics",
        "evaluate": "tfanet_eval.evaluation",
        "predict": "tfanet_eval.prediction",
    },
)
