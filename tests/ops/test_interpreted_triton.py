"""Run the Triton kernels' tests under Triton's interpreter, in another session."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.integration

FILES = (
    "test_selective_scan_triton.py",
    "test_linear_cross_attention_triton.py",
    "test_cross_selective_scan_triton.py",
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels' tests run on the GPU")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="already under the interpreter")
@pytest.mark.parametrize("file", FILES)
def test_under_the_interpreter(file):
    pytest.importorskip("triton")
    path = Path(__file__).with_name(file)
    session = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path],
        env=dict(os.environ, TRITON_INTERPRET="1"), capture_output=True, text=True, cwd=path.parents[2],
    )  # fmt: skip
    assert session.returncode == 0, session.stdout + session.stderr
    assert re.search(r"\d+ passed", session.stdout)
    assert "skipped" not in session.stdout
