"""Run an ONNX file in ONNX Runtime, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfanet.config import TFANetConfig
from tfanet.errors import UserError
from tfanet.signature import signature_of
from tfanet_engines.engine import Engine
from tfanet_engines.onnx_file import check_structure, config_of
from tfanet_engines.ort_session import CPU, one_line, open_session
from tfanet_engines.sidecar import Sidecar, sidecar_path

if TYPE_CHECKING:
    import torch


class OnnxEngine(Engine):
    """See `Engine`. One session, with one memory arena, serves every thread.

    A file with a sidecar must have its hash. Any other file is first checked with `onnx.checker`.
    """

    kind = "onnx"

    def __init__(
        self, file: Path, providers: Sequence[str] | None, threads: int | None, *, native: bool = True
    ) -> None:
        if sidecar_path(file).exists():
            Sidecar.read(file).check_file(file)
        else:
            check_structure(file)
        self._session = open_session(file, providers, threads, native=native)
        with one_line(f"{file} is altered"):
            metadata = self._session.get_modelmeta().custom_metadata_map
            names = [x.name for x in (*self._session.get_inputs(), *self._session.get_outputs())]
        config = config_of(file, metadata)
        _check_names(file, names, config)
        provider = self._session.get_providers()[0]
        device = "cpu" if provider == CPU else _current_gpu()
        super().__init__(file, config, f"ONNX Runtime, {provider.removesuffix('ExecutionProvider')}", device)

    def _infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        signature = signature_of(self.config)
        feed = {signature.image.name: images, signature.tokens.name: tokens}
        with one_line(f"{self.name} failed"):
            return self._session.run([signature.mask_logits.name], feed)[0]

    def _infer_tensors(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        import torch

        if self.device == "cpu":
            return torch.from_numpy(self._infer(images.numpy(), tokens.numpy()))
        signature = signature_of(self.config)
        shape = len(images), *(int(n) for n in signature.mask_logits.shape[1:])
        logits = torch.empty(shape, dtype=torch.float32, device=images.device)
        with one_line(f"{self.name} failed"):
            binding = self._session.io_binding()
            for bind, spec, tensor in (
                (binding.bind_input, signature.image, images),
                (binding.bind_input, signature.tokens, tokens),
                (binding.bind_output, signature.mask_logits, logits),
            ):
                kind = np.dtype(spec.dtype).type
                bind(spec.name, "cuda", images.device.index, kind, [*tensor.shape], tensor.data_ptr())
            # ONNX Runtime computes on its own stream.
            torch.cuda.current_stream(images.device).synchronize()
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        return logits

    def _free(self) -> None:
        del self._session


def _current_gpu() -> str:
    import torch

    return f"cuda:{torch.cuda.current_device()}"


def _check_names(file: Path, names: list[str], config: TFANetConfig) -> None:
    signature = signature_of(config)
    expected = [x.name for x in (*signature.inputs, *signature.outputs)]
    if names != expected:
        raise UserError(f"{file} has tensors {names}, not {expected}; export it with tfanet-export onnx")
