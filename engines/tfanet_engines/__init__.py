"""Build plans from ONNX files, and run .safetensors, .onnx and .plan behind one `Engine`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfanet_engines.build import BuildReport, build_plan
    from tfanet_engines.parity import TOLERANCES, ParityFigures, Tolerance, check, compare_logits
    from tfanet_engines.run import Engine, open_engine
    from tfanet_engines.sidecar import Sidecar

__all__ = [
    "TOLERANCES",
    "BuildReport",
    "Engine",
    "ParityFigures",
    "Sidecar",
    "Tolerance",
    "build_plan",
    "check",
    "compare_logits",
    "open_engine",
]

_HOMES = {
    "BuildReport": "build",
    "build_plan": "build",
    "TOLERANCES": "parity",
    "ParityFigures": "parity",
    "Tolerance": "parity",
    "check": "parity",
    "compare_logits": "parity",
    "Engine": "run",
    "open_engine": "run",
    "Sidecar": "sidecar",
}


def __getattr__(name: str) -> Any:
    """Import on first use: most commands need one part only."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'tfanet_engines' has no attribute {name!r}")
    return getattr(import_module(f"tfanet_engines.{_HOMES[name]}"), name)
