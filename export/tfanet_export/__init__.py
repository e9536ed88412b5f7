"""torch -> ONNX -> plan: tracing, function bodies, FP16, verification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfanet_export.export import ExportReport, export_onnx

__all__ = ["ExportReport", "export_onnx"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `--help` does not import torch."""
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module 'tfanet_export' has no attribute {name!r}")
    return getattr(import_module("tfanet_export.export"), name)
