"""Run an ONNX file in ONNX Runtime, on the CPU or a CUDA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfanet.config import TFANetConfig
from tfanet.errors import UserError
from tfanet.signature import signature_of
from tfanet_engines.engine import Engine
from tfanet_engines.onnx_file import config_of
from tfanet_engines.sidecar import Sidecar, sidecar_path

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
QUIET = 4
"""ONNX Runtime's severity of fatal errors: what it has to say otherwise comes back as an exception."""


class OnnxEngine(Engine):
    """See `Engine`."""

    kind = "onnx"

    def __init__(
        self, file: Path, providers: Sequence[str] | None, threads: int | None, *, native: bool = True
    ) -> None:
        if sidecar_path(file).exists():
            Sidecar.read(file).check_file(file)
        self._session = _session(file, list(providers) if providers is not None else None, threads, native)
        config = config_of(file, self._session.get_modelmeta().custom_metadata_map)
        _check_names(file, self._session, config)
        used = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        super().__init__(file, config, f"ONNX Runtime, {used}")

    def _infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        signature = signature_of(self.config)
        feed = {signature.image.name: images, signature.tokens.name: tokens}
        return self._session.run([signature.mask_logits.name], feed)[0]

    def _free(self) -> None:
        del self._session


def _session(file: Path, providers: list[str] | None, threads: int | None, native: bool) -> Any:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

    from tfanet.ops.native import library

    wanted = _providers(onnxruntime, providers)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    if threads is not None:
        options.intra_op_num_threads = threads
    if native and wanted[0] == CPU and (kernels := library()):
        options.register_custom_ops_library(str(kernels))
    settings = [(name, {"use_tf32": "0"} if name == CUDA else {}) for name in wanted]
    refusals = (
        state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented,
        state.NoSuchFile, state.RuntimeException, state.EPFail,
    )  # fmt: skip
    try:
        session = onnxruntime.InferenceSession(str(file), options, settings)
    except refusals as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{file} is truncated or no ONNX file that ONNX Runtime runs: {reason}") from error
    if session.get_providers()[0] != wanted[0]:
        raise UserError(f"ONNX Runtime cannot use {wanted[0]} on this machine; give {CPU}")
    return session


def _providers(onnxruntime: Any, asked: list[str] | None) -> list[str]:
    """The providers to use; `UserError` when one that was asked for is not installed."""
    available = onnxruntime.get_available_providers()
    if asked is None:
        import torch

        asked = [CUDA, CPU] if CUDA in available and torch.cuda.is_available() else [CPU]
    unknown = [name for name in asked if name not in available]
    if unknown or not asked:
        raise UserError(f"ONNX Runtime has no provider {', '.join(unknown)}; it has {', '.join(available)}")
    if CUDA in asked:
        # PyTorch brings the CUDA libraries; without this ONNX Runtime looks for them on the system's path.
        onnxruntime.preload_dlls()
    return asked


def _check_names(file: Path, session: Any, config: TFANetConfig) -> None:
    signature = signature_of(config)
    found = [x.name for x in (*session.get_inputs(), *session.get_outputs())]
    promised = [x.name for x in (*signature.inputs, *signature.outputs)]
    if found != promised:
        raise UserError(f"{file} has tensors {found}, not {promised}; export it with tfanet-export onnx")
