"""Run a plan in TensorRT-RTX or TensorRT on the GPU it was built for, with PyTorch's tensors as buffers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfanet.errors import UserError
from tfanet.signature import signature_of
from tfanet_engines.engine import Engine
from tfanet_engines.sidecar import Sidecar
from tfanet_engines.targets import fits, sm
from tfanet_engines.trt_api import MODULES, load_backend, make_logger

if TYPE_CHECKING:
    import torch


class PlanEngine(Engine):
    """See `Engine`. The sidecar is compared with the machine before the plan is opened."""

    kind = "plan"

    def __init__(self, file: Path) -> None:
        sidecar = Sidecar.read(file)
        sidecar.check_file(file)
        self._device = _check_machine(file, sidecar)
        trt = _check_runtime(file, sidecar)
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if self._engine is None:
            errors = "; ".join(self._logger.errors)
            raise UserError(f"{trt.__name__} cannot open {file}: {errors}; {sidecar.remedy}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise UserError(f"not enough GPU memory to run {file}: {'; '.join(self._logger.errors)}")
        super().__init__(file, sidecar.model_config(), f"{trt.__name__} {trt.__version__}")

    @property
    def batch(self) -> tuple[int, int, int]:
        """Smallest, optimal and largest batch of the plan."""
        name = signature_of(self.config).image.name
        smallest, optimal, largest = self._engine.get_tensor_profile_shape(name, 0)
        return smallest[0], optimal[0], largest[0]

    def _infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        import torch

        smallest, _, largest = self.batch
        if not smallest <= len(images) <= largest:
            raise UserError(f"{self.name} takes {smallest} to {largest} images at once, not {len(images)}")
        signature = signature_of(self.config)
        stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):
            buffers: dict[str, torch.Tensor] = {
                signature.image.name: torch.tensor(images, device=self._device),
                signature.tokens.name: torch.tensor(tokens, device=self._device),
            }
            for name, tensor in buffers.items():
                self._require(self._context.set_input_shape(name, tuple(tensor.shape)))
            name = signature.mask_logits.name
            shape = tuple(self._context.get_tensor_shape(name))
            buffers[name] = torch.empty(shape, dtype=torch.float32, device=self._device)
            for name, tensor in buffers.items():
                self._require(self._context.set_tensor_address(name, tensor.data_ptr()))
            self._require(self._context.execute_async_v3(stream.cuda_stream))
            logits = buffers[signature.mask_logits.name].cpu()
        stream.synchronize()
        return logits.numpy()

    def _require(self, done: bool) -> None:
        if not done:
            raise RuntimeError(f"{self.name} failed: {'; '.join(self._logger.errors)}")

    def _free(self) -> None:
        # TensorRT wants the context gone before the engine, and the engine before the runtime.
        del self._context
        del self._engine
        del self._runtime


def _check_machine(file: Path, sidecar: Sidecar) -> torch.device:
    """The GPU to use; `UserError` when there is none of the generation that the plan was built for."""
    import torch

    if sidecar.kind != "plan" or not sidecar.compute_capabilities:
        raise UserError(f"the sidecar of {file} describes no plan; {sidecar.remedy}")
    wanted = ", ".join(sidecar.compute_capabilities)
    if not torch.cuda.is_available():
        raise UserError(
            f"{file} needs an NVIDIA GPU of compute capability {wanted}, and this machine has none; "
            "run the .onnx or .safetensors file here"
        )
    found = "{}.{}".format(*torch.cuda.get_device_capability())
    if not fits(found, sidecar.compute_capabilities):
        raise UserError(
            f"{file} was built for compute capability {wanted}, {torch.cuda.get_device_name()} has {found}; "
            f"{sidecar.remedy}, with target {sm(found)}"
        )
    return torch.device("cuda", torch.cuda.current_device())


def _check_runtime(file: Path, sidecar: Sidecar) -> Any:
    """The module that opens the plan; `UserError` when it is missing or not of the builder's version."""
    backends = {module: name for name, module in MODULES.items()}
    if sidecar.builder not in backends:
        raise UserError(f"{file} was built by {sidecar.builder!r}, which is unknown here; {sidecar.remedy}")
    _, trt = load_backend(backends[sidecar.builder])
    if trt.__version__.split(".")[:3] != sidecar.builder_version.split(".")[:3]:
        raise UserError(
            f"{file} was built by {sidecar.builder} {sidecar.builder_version}, and {trt.__version__} is "
            f"installed; plans run on the version that built them: {sidecar.remedy}"
        )
    return trt
