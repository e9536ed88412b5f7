"""Run a plan in TensorRT-RTX or TensorRT on the GPU it was built for; buffers are PyTorch tensors."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfanet.errors import UserError
from tfanet.files import require_file
from tfanet.signature import TensorSpec, signature_of
from tfanet_engines import trust as trusted
from tfanet_engines.context_pool import ContextPool, InferenceContext, OpenPlan
from tfanet_engines.engine import Engine
from tfanet_engines.gpu import gpu_for
from tfanet_engines.runtime_cache import RuntimeCache, cache_path
from tfanet_engines.sidecar import Sidecar
from tfanet_engines.trt_api import MODULES, load_backend, make_logger

if TYPE_CHECKING:
    import torch


class PlanEngine(Engine):
    """See `Engine`. The sidecar is compared with the file and this machine before the plan is deserialised.

    GPU memory: the weights once, and `context_bytes` for each of at most `contexts` contexts.
    """

    kind = "plan"

    def __init__(
        self,
        file: Path,
        *,
        trust: bool = False,
        contexts: int = 2,
        cuda_graphs: bool = True,
        extra: Sequence[TensorSpec] = (),
    ) -> None:
        """Open `file`; `extra` are the additional outputs of a plan that was built with `extra_outputs`."""
        sidecar = Sidecar.read(file)
        plan_bytes = _read_checked(file, sidecar, extra, trust=trust)
        device = gpu_for(file, sidecar)
        trt = _library(file, sidecar)
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._deserialize(trt, file, sidecar, plan_bytes)
        del plan_bytes
        self._config, self._cache = _runtime_config(trt, self._engine, sidecar, device)
        signature = dataclasses.replace(signature_of(sidecar.model_config()), extra=(*extra,))
        smallest, optimal, largest = self._engine.get_tensor_profile_shape(signature.image.name, 0)
        self.batch = smallest[0], optimal[0], largest[0]
        """Smallest, optimal and largest batch of the plan."""
        self._plan = OpenPlan(
            name=f"{file.name} ({trt.__name__} {trt.__version__})",
            engine=self._engine,
            new_context=self._new_context,
            errors=self._logger.errors,
            device=device,
            signature=signature,
            largest=self.batch[2],
            cuda_graphs=cuda_graphs,
        )
        self._strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._pool = ContextPool(lambda: InferenceContext(self._plan), contexts)
        super().__init__(file, sidecar.model_config(), f"{trt.__name__} {trt.__version__}", str(device))

    def _deserialize(self, trt: Any, file: Path, sidecar: Sidecar, plan_bytes: bytes) -> Any:
        """The `ICudaEngine`; `UserError` if the library rejects the plan."""
        _check_header(trt, self._runtime, file, sidecar, plan_bytes)
        if sidecar.version_compatible:
            # Such a plan contains the library's lean runtime as machine code.
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(plan_bytes)
        if engine is None:
            errors = "; ".join(self._logger.errors)
            raise UserError(f"{trt.__name__} cannot open {file}: {errors}; {sidecar.remedy}")
        return engine

    @property
    def context_bytes(self) -> int:
        """Device memory of a context, without what the library keeps per `IExecutionContext`."""
        return self._plan.context_bytes

    @property
    def lane_bytes(self) -> int:
        """Deprecated name of `context_bytes`."""
        warnings.warn("lane_bytes is now context_bytes", DeprecationWarning, stacklevel=2)
        return self.context_bytes

    def warm_up(self, batch: int = 1, calls: int = 2) -> float:
        """As `Engine.warm_up`, in every context; saves the compiled kernels to the runtime cache."""
        self._check_batch(batch)
        images, tokens = self._blank(batch)
        start = time.perf_counter()
        with self._pool.all_contexts() as contexts:
            for context in contexts:
                for _ in range(calls):
                    context.infer(images, tokens)
        seconds = time.perf_counter() - start
        if self._cache is not None:
            self._cache.save()
        return seconds

    def _infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        self._check_batch(len(images))
        with self._pool.context() as context:
            return context.infer(images, tokens)

    def _infer_tensors(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        self._check_batch(len(images))
        with self._pool.context() as context:
            return context.infer_tensors(images, tokens)

    def extra_outputs(self, images: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The values of the extra outputs, by name, for one image and expression; inputs as for `infer`."""
        self._check_batch(len(images))
        with self._pool.context() as context:
            return context.extra_outputs(images, tokens)

    def _check_batch(self, count: int) -> None:
        smallest, _, largest = self.batch
        if not smallest <= count <= largest:
            raise UserError(f"{self.name} takes {smallest} to {largest} images at once, not {count}")

    def _new_context(self) -> Any:
        if self._config is not None:
            return self._engine.create_execution_context(self._config)
        return self._engine.create_execution_context(self._strategy)

    def _free(self) -> None:
        self._pool.close()
        if self._cache is not None:
            self._cache.save()
        # TensorRT requires contexts to be freed before the engine, and the engine before the runtime.
        del self._pool, self._plan, self._cache, self._config
        del self._engine
        del self._runtime


def _read_checked(file: Path, sidecar: Sidecar, extra: Sequence[TensorSpec], *, trust: bool) -> bytes:
    """The bytes of the plan; `UserError` unless kind, extra outputs, hash and trust are as they must be."""
    _check_kind(file, sidecar)
    if [spec.name for spec in extra] != sidecar.proof.get("further_outputs", []):
        raise UserError(
            f"{file} has extra outputs for inspection and is not for deployment; {sidecar.remedy}"
        )
    # The hashed bytes are the ones that are deserialised, even if the file changes in between.
    plan_bytes = require_file(file, "plan").read_bytes()
    sidecar.check_digest(file, hashlib.sha256(plan_bytes).hexdigest())
    if not trust:
        trusted.require(file, sidecar)
    return plan_bytes


def _check_kind(file: Path, sidecar: Sidecar) -> None:
    """Raises `UserError` unless the sidecar describes a plan of TensorRT or TensorRT-RTX."""
    if sidecar.kind != "plan" or not sidecar.compute_capabilities:
        raise UserError(f"the sidecar of {file} does not describe a plan; {sidecar.remedy}")
    if sidecar.builder not in MODULES.values():
        raise UserError(f"{file} was built by the unknown library {sidecar.builder!r}; {sidecar.remedy}")


def _library(file: Path, sidecar: Sidecar) -> Any:
    """The Python module that opens the plan.

    Raises `UserError` if it is not installed or of another version than the builder's. A version-compatible
    plan needs the same major version only.
    """
    (backend,) = (name for name, module in MODULES.items() if module == sidecar.builder)
    try:
        _, trt = load_backend(backend)
    except UserError as error:
        raise UserError(f"{file} is a plan of {sidecar.builder}: {error}; or {sidecar.remedy}") from error
    parts = 1 if sidecar.version_compatible else 3
    if trt.__version__.split(".")[:parts] != sidecar.builder_version.split(".")[:parts]:
        raise UserError(
            f"{file} was built by {sidecar.builder} {sidecar.builder_version}, but {trt.__version__} is "
            f"installed; install that version, or {sidecar.remedy}"
        )
    return trt


def _check_header(trt: Any, runtime: Any, file: Path, sidecar: Sidecar, plan: bytes) -> None:
    """Raises `UserError` if TensorRT-RTX rejects the plan's header on this machine."""
    if not hasattr(runtime, "get_engine_validity"):  # TensorRT has no such check
        return
    validity, reasons = runtime.get_engine_validity(plan)
    if validity == trt.EngineValidity.INVALID:
        kinds = trt.EngineInvalidityDiagnostics.__members__.items()
        names = ", ".join(name for name, kind in kinds if int(reasons) & int(kind)) or "no reason given"
        raise UserError(f"{trt.__name__} rejects {file}: {names}; {sidecar.remedy}")


def _runtime_config(
    trt: Any, engine: Any, sidecar: Sidecar, device: torch.device
) -> tuple[Any, RuntimeCache | None]:
    """TensorRT-RTX's `IRuntimeConfig` and cache of compiled kernels; (None, None) for TensorRT.

    Kernels are specialised eagerly, before the first call with a batch size returns: a CUDA graph captured
    during lazy specialisation would keep the slower fallback kernels.
    """
    if not hasattr(trt, "IRuntimeCache"):
        return None, None
    import torch

    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # captured by `InferenceContext`
    path = cache_path(sidecar.file_sha256, trt.__version__, torch.cuda.get_device_name(device))
    return config, RuntimeCache(config, path)
