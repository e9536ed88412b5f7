"""Evaluation of any engine, parity with its reference, prediction on one's own picture, and the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfanet_eval.accuracy import Evaluation, evaluate
    from tfanet_eval.latency import Latency
    from tfanet_eval.metrics import SegmentationMetrics
    from tfanet_eval.prediction import predict

__all__ = [
    "Evaluation",
    "Latency",
    "SegmentationMetrics",
    "evaluate",
    "predict",
]

_HOMES = {
    "Evaluation": "accuracy",
    "Latency": "latency",
    "SegmentationMetrics": "metrics",
    "evaluate": "accuracy",
    "predict": "prediction",
}


def __getattr__(name: str) -> Any:
    """Import on first use: most commands need one part only."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'tfanet_eval' has no attribute {name!r}")
    return getattr(import_module(f"tfanet_eval.{_HOMES[name]}"), name)
