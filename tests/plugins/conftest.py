"""NVIDIA's bindings for the tests, every version of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import bindings_jobs
from fakes.bindings import make_bindings
from fetched import Unavailable

from tfanet.subprocesses import run_in_subprocess

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def ask_tensorrt(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """`ask(version, request)`: the answer of `fakes.bindings_jobs.build_plugin_layers`, or of another `job`.

    With `interpreted=True` kernels run in Triton's interpreter. Skips if the bindings are unavailable.
    """
    cache = pytestconfig.cache.mkdir("tensorrt")
    work = tmp_path_factory.mktemp("tensorrt")

    @functools.cache
    def folder_of(version: str) -> Path | Unavailable:
        folder = work / version
        try:
            make_bindings(cache, folder, version)
        except Unavailable as error:
            return error
        return folder

    def ask(
        version: str,
        request: dict[str, Any],
        *,
        interpreted: bool = False,
        job: str = "build_plugin_layers",
        environment: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        folder = folder_of(version)
        if isinstance(folder, Unavailable):
            pytest.skip(f"NVIDIA's bindings are unavailable, see docs/plugins.md: {folder}")
        variables = {"TRITON_CACHE_DIR": str(work / "triton"), "TRITON_INTERPRET": str(int(interpreted))}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (variables | (environment or {})).items():
                patch.setenv(name, value)
            return run_in_subprocess(
                bindings_jobs.answer, (job, folder, {"interpreted": interpreted} | request)
            )

    return ask
