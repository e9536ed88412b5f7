"""ONNX Runtime on the CPU, with and without our compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tfanet.ops.native import library


def open_session(path: Path, threads: int, profile: Path | None = None, *, native: bool = False) -> Any:
    """A session on the CPU; with `profile` it writes a trace to a file whose name starts with that.

    With `native` our compiled kernels run if they were built, else the function bodies of the file.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if native and (kernels := library()):
        options.register_custom_ops_library(str(kernels))
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def onnx_call(
    path: Path, threads: int, feed: Mapping[str, np.ndarray], *, native: bool
) -> Callable[[], np.ndarray]:
    """Runs the file on `feed` and returns its first output."""
    session = open_session(path, threads, native=native)
    return lambda: np.asarray(session.run(None, feed)[0])
