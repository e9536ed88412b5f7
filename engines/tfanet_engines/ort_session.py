"""Sessions of ONNX Runtime: which provider computes, and every way a file can fail to open, in one line."""

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
"""The module of the wheel onnxruntime-ep-nv-tensorrt-rtx, for builds of ONNX Runtime without the provider."""
QUIET = 4
"""ONNX Runtime's severity of fatal errors: what it has to say otherwise comes back as an exception."""
LONGEST_REASON = 300


def open_session(
    file: Path, providers: Sequence[str] | None = None, threads: int | None = None, *, native: bool = True
) -> Any:
    """An `InferenceSession` of `file`; the arguments are those of `tfanet_engines.open_engine`.

    Raises `UserError` when a provider cannot be had or ONNX Runtime does not run the file.
    """
    import onnxruntime

    from tfanet.ops.native import library

    plugin = _plugin_devices(onnxruntime, providers)
    wanted = _providers(onnxruntime, providers, plugin=bool(plugin))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    if threads is not None:
        options.intra_op_num_threads = threads
    if native and wanted[0] == CPU and (kernels := library()):
        options.register_custom_ops_library(str(kernels))
    settings = [(name, {"use_tf32": "0"} if name == CUDA else {}) for name in wanted]
    with one_line(f"{file} is truncated or no ONNX file that ONNX Runtime runs"):
        if plugin:
            options.add_provider_for_devices(plugin[:1], {})
            session = onnxruntime.InferenceSession(str(file), options, enable_fallback=0)
        else:
            session = onnxruntime.InferenceSession(str(file), options, settings, enable_fallback=0)
    if session.get_providers()[0] != wanted[0]:
        raise UserError(f"ONNX Runtime cannot use {wanted[0]} on this machine; give {CPU}")
    return session


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """`UserError` that begins with `what` in the place of anything that ONNX Runtime raises."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

    refusals = (
        state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented,
        state.NoSuchFile, state.RuntimeException, state.EPFail, state.NoModel, state.ModelLoaded,
        UnicodeDecodeError, MemoryError, RuntimeError,
    )  # fmt: skip
    try:
        yield
    except refusals as error:
        # UnicodeDecodeError: names in a damaged file that are no text. RuntimeError: the binding's own.
        raise UserError(f"{what}: {' '.join(str(error).split())[:LONGEST_REASON]}") from error


def _providers(onnxruntime: Any, asked: Sequence[str] | None, *, plugin: bool) -> list[str]:
    """The providers to use; `UserError` when one that was asked for is not installed."""
    available = onnxruntime.get_available_providers()
    if asked is None:
        import torch

        asked = [CUDA, CPU] if CUDA in available and torch.cuda.is_available() else [CPU]
    unknown = [name for name in asked if name not in available and not (plugin and name == RTX)]
    if unknown or not asked:
        raise UserError(f"ONNX Runtime has no provider {', '.join(unknown)}; it has {', '.join(available)}")
    if CUDA in asked:
        # PyTorch brings the CUDA libraries; without this ONNX Runtime looks for them on the system's path.
        onnxruntime.preload_dlls()
    return [*asked]


def _plugin_devices(onnxruntime: Any, asked: Sequence[str] | None) -> list[Any]:
    """The GPUs of TensorRT-RTX's provider, where it is asked for first and a wheel of its own brings it.

    `UserError` where the wheel finds no GPU that it can use.
    """
    if not asked or asked[0] != RTX or RTX in onnxruntime.get_available_providers():
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
        raise UserError(f"{RTX} finds no GPU that it can use on this machine; give {CPU}")
    return devices
