"""ONNX Runtime sessions: the choice of providers, and errors in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tfanet.errors import UserError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
"""Module of the wheel onnxruntime-ep-nv-tensorrt-rtx, a plugin for ONNX Runtime builds without `RTX`."""
QUIET = 4
"""ONNX Runtime's severity of fatal errors; other errors are raised as exceptions anyway."""
LONGEST_REASON = 300


def open_session(
    file: Path, providers: Sequence[str] | None = None, threads: int | None = None, *, native: bool = True
) -> Any:
    """An `InferenceSession` of `file`; the arguments are those of `tfanet_engines.open_engine`.

    Raises `UserError` if a provider is unavailable or ONNX Runtime cannot run the file.
    """
    import onnxruntime

    from tfanet.ops.native import library

    plugin = _plugin_devices(onnxruntime, providers)
    names = _providers(onnxruntime, providers, plugin=bool(plugin))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    if threads is not None:
        options.intra_op_num_threads = threads
    if native and names[0] == CPU and (kernels := library()):
        options.register_custom_ops_library(str(kernels))
    settings = [(name, {"use_tf32": "0"} if name == CUDA else {}) for name in names]
    with one_line(f"{file} is truncated, or ONNX Runtime cannot run it"):
        if plugin:
            options.add_provider_for_devices(plugin[:1], {})
            session = onnxruntime.InferenceSession(str(file), options, enable_fallback=0)
        else:
            session = onnxruntime.InferenceSession(str(file), options, settings, enable_fallback=0)
    if session.get_providers()[0] != names[0]:
        raise UserError(f"ONNX Runtime cannot use {names[0]} on this machine; give {CPU}")
    return session


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns every error of ONNX Runtime into a `UserError` that begins with `what`."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

    errors = (
        state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented,
        state.NoSuchFile, state.RuntimeException, state.EPFail, state.NoModel, state.ModelLoaded,
        UnicodeDecodeError, MemoryError, RuntimeError,
    )  # fmt: skip
    try:
        yield
    except errors as error:
        # UnicodeDecodeError: names in a damaged file. RuntimeError: the Python binding's.
        raise UserError(f"{what}: {' '.join(str(error).split())[:LONGEST_REASON]}") from error


def _providers(onnxruntime: Any, requested: Sequence[str] | None, *, plugin: bool) -> list[str]:
    """The providers to use; `UserError` if one in `requested` is not installed."""
    available = onnxruntime.get_available_providers()
    if requested is None:
        import torch

        requested = [CUDA, CPU] if CUDA in available and torch.cuda.is_available() else [CPU]
    unknown = [name for name in requested if name not in available and not (plugin and name == RTX)]
    if unknown or not requested:
        raise UserError(f"ONNX Runtime has no provider {', '.join(unknown)}; it has {', '.join(available)}")
    if CUDA in requested:
        # Loads the CUDA libraries that PyTorch installs; ONNX Runtime only searches the system's path.
        onnxruntime.preload_dlls()
    return [*requested]


def _plugin_devices(onnxruntime: Any, requested: Sequence[str] | None) -> list[Any]:
    """The GPUs of the TensorRT-RTX plugin provider, if `RTX` is requested first and not built in.

    Raises `UserError` if the wheel is not installed or supports no GPU of this machine.
    """
    if not requested or requested[0] != RTX or RTX in onnxruntime.get_available_providers():
        return []
    if find_spec(RTX_PLUGIN) is None:
        raise UserError(f"ONNX Runtime has no provider {RTX}; pip install onnxruntime-ep-nv-tensorrt-rtx")
    import importlib

    wheel = importlib.import_module(RTX_PLUGIN)
    with one_line(f"{RTX} does not load"):
        if not any(device.ep_name == RTX for device in onnxruntime.get_ep_devices()):
            onnxruntime.register_execution_provider_library(RTX, wheel.get_library_path())
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == RTX]
    if not devices:
        raise UserError(f"{RTX} supports no GPU of this machine; give {CPU}")
    return devices
