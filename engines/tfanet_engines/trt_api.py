"""What the Python modules of TensorRT and TensorRT-RTX have in common; a parameter `trt` is either module."""

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
    """The name and Python module of `auto`, `tensorrt-rtx` or `tensorrt`; `auto` prefers TensorRT-RTX.

    Raises `UserError` if it is unknown or not installed.
    """
    name = find_backend(backend)
    return name, _import(name)


def find_backend(backend: str) -> Backend:
    """As `load_backend`, without importing the module."""
    if backend not in ("auto", *MODULES):
        raise UserError(f"unknown backend {backend!r}; give auto, {' or '.join(MODULES)}")
    allowed: list[Backend] = [name for name in MODULES if backend in ("auto", name)]
    for name in allowed:
        if importlib.util.find_spec(MODULES[name]):
            return name
    advice = " or ".join(INSTALL[name] for name in allowed)
    raise UserError(f"{' and '.join(allowed)} is not installed; install with: {advice}")


def _import(name: Backend) -> ModuleType:
    try:
        return importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:
        raise UserError(f"{name} is installed but does not load ({error}); {INSTALL[name]}") from error


def make_logger(trt: ModuleType) -> Any:
    """A `trt.ILogger` that prints nothing and collects errors in its list `errors`."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            # Without a driver every error is followed by one about CUDA.
            if severity <= trt.ILogger.Severity.ERROR and "catchCudaError" not in message:
                self.errors.append(message)

    return Logger()


def parser_errors(parser: Any) -> list[str]:
    """The ONNX parser's errors, each with its node."""
    messages = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        text = " ".join(line for line in error.desc().splitlines() if "catchCudaError" not in line)
        messages.append(f"{error.node_operator() or 'model'} {error.node_name()!r}: {text}")
    return messages
