"""What TensorRT and TensorRT-RTX share in Python; the module itself is a parameter, called `trt`."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any, Literal

from tfanet.errors import UserError

Backend = Literal["tensorrt-rtx", "tensorrt"]
MODULES: dict[Backend, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
INSTALL: dict[Backend, str] = {
    "tensorrt-rtx": "pip install tensorrt-rtx",
    "tensorrt": 'pip install "tfanet[tensorrt]"',
}


def load_backend(backend: str) -> tuple[Backend, ModuleType]:
    """The name and Python module of `auto`, `tensorrt-rtx` or `tensorrt`; auto prefers TensorRT-RTX.

    Raises `UserError` when it is unknown or not installed.
    """
    name = find_backend(backend)
    return name, _import(name)


def find_backend(backend: str) -> Backend:
    """The first installed of those that `backend` allows, without importing it; raises as `load_backend`."""
    if backend not in ("auto", *MODULES):
        raise UserError(f"unknown backend {backend!r}; give auto, {' or '.join(MODULES)}")
    wanted: list[Backend] = [name for name in MODULES if backend in ("auto", name)]
    for name in wanted:
        if importlib.util.find_spec(MODULES[name]):
            return name
    advice = " or ".join(INSTALL[name] for name in wanted)
    raise UserError(f"{' and '.join(wanted)} cannot be imported; install with: {advice}")


def _import(name: Backend) -> ModuleType:
    try:
        return importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:
        raise UserError(f"{name} is installed but does not load ({error}); {INSTALL[name]}") from error


def make_logger(trt: ModuleType) -> Any:
    """A `trt.ILogger` that prints nothing and keeps errors in its list `errors`."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            # Without a driver every error is followed by one about CUDA, which explains nothing.
            if severity <= trt.ILogger.Severity.ERROR and "catchCudaError" not in message:
                self.errors.append(message)

    return Logger()


def parser_errors(parser: Any) -> list[str]:
    """The ONNX parser's errors in full, each with its node."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        text = " ".join(line for line in error.desc().splitlines() if "catchCudaError" not in line)
        found.append(f"{error.node_operator() or 'model'} {error.node_name()!r}: {text}")
    return found
