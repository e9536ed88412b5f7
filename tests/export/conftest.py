"""Fixture of a small engine to serve."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_engines import write_onnx


@pytest.fixture
def small_engine(tmp_path: Path) -> Path:
    """`small.onnx` of `small_engines`, with its sidecar."""
    return write_onnx(tmp_path / "small.onnx")
