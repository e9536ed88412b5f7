"""PyTorch -> ONNX -> TensorRT plan: tracing, function bodies, FP16, verification."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfanet.lazy import lazy_attributes

if TYPE_CHECKING:
    from tfanet_export.export import ExportReport, export_onnx

__all__ = ["ExportReport", "export_onnx"]

__getattr__ = lazy_attributes(
    __name__, {"ExportReport": "tfanet_export.export", "export_onnx": "tfanet_export.export"}
)
