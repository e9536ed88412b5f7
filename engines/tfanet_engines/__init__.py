"""Build plans from ONNX files, and run .safetensors, .onnx and .plan behind one `Engine`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfanet.lazy import lazy_attributes

if TYPE_CHECKING:
    from tfanet_engines.build import BuildReport, build_plan
    from tfanet_engines.engine import Engine
    from tfanet_engines.options import BuildOptions
    from tfanet_engines.parity import TOLERANCES, ParityMetrics, Tolerance, compare_logits, gate
    from tfanet_engines.run import open_engine
    from tfanet_engines.sidecar import Sidecar

__all__ = [
    "TOLERANCES",
    "BuildOptions",
    "BuildReport",
    "Engine",
    "ParityMetrics",
    "Sidecar",
    "Tolerance",
    "build_plan",
    "compare_logits",
    "gate",
    "open_engine",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "BuildOptions": "tfanet_engines.options",
        "BuildReport": "tfanet_engines.build",
        "build_plan": "tfanet_engines.build",
        "TOLERANCES": "tfanet_engines.parity",
        "ParityMetrics": "tfanet_engines.parity",
        "Tolerance": "tfanet_engines.parity",
        "gate": "tfanet_engines.parity",
        "compare_logits": "tfanet_engines.parity",
        "Engine": "tfanet_engines.engine",
        "open_engine": "tfanet_engines.run",
        "Sidecar": "tfanet_engines.sidecar",
    },
    renamed={"ParityFigures": "ParityMetrics"},
)
