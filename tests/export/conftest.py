"""A small engine to serve."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Pytest imports tests without touching sys.path; these lie beside them.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from small_engines import write_onnx  # noqa: E402


@pytest.fixture
def small_engine(tmp_path: Path) -> Path:
    """`small.onnx` of `small_engines`, with its sidecar."""
    return write_onnx(tmp_path / "small.onnx")
