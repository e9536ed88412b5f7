"""Layers as TensorRT's builder sees them, for every TensorRT that the tests ask for."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fetched import Unavailable
from wheels import bindings

HERE = Path(__file__).parent

LEAN = {"10": "10.16.1.11", "11": "11.4.0.106"}
"""A lean runtime for each major version. Its registry serves older bindings, whose own is not to be had."""

Answer = dict[str, Any]
Ask = Callable[..., Answer]


@pytest.fixture(scope="session")
def ask_tensorrt(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """`ask(version, request)`: what `host.py`, or another `script`, answers; `interpreted=True` runs kernels.

    `output` in the answer is what was printed. Skips where the bindings cannot be had.
    """
    cache = pytestconfig.cache.mkdir("tensorrt")
    work = tmp_path_factory.mktemp("tensorrt")

    @functools.cache
    def folder_of(version: str) -> Path | Unavailable:
        folder = work / version
        try:
            bindings(cache, folder, version, LEAN[version.split(".")[0]])
        except Unavailable as error:
            return error
        return folder

    def ask(
        version: str,
        request: dict[str, Any],
        *,
        interpreted: bool = False,
        script: str = "host.py",
        environment: dict[str, str] | None = None,
    ) -> Answer:
        folder = folder_of(version)
        if isinstance(folder, Unavailable):
            pytest.skip(f"aot_impl is asked through NVIDIA's bindings, which docs/plugins.md gets: {folder}")
        answer = work / "answer.json"
        more = (environment or {}) | {
            "TRITON_CACHE_DIR": str(work / "triton"),
            "TRITON_INTERPRET": str(int(interpreted)),
        }
        done = subprocess.run(
            [sys.executable, HERE / script, folder, answer],
            input=json.dumps({"path": [str(HERE / "third_op")], "interpreted": interpreted, **request}),
            env=os.environ | more,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout
        return json.loads(answer.read_text(encoding="utf-8")) | {"output": done.stdout}

    return ask
