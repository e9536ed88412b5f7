"""Run a plan in TensorRT-RTX or TensorRT on the GPU it was built for, with PyTorch's tensors as buffers."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfanet.errors import UserError
from tfanet.files import require_file
from tfanet.signature import TensorSpec, signature_of
from tfanet_engines import trust as trusted
from tfanet_engines.engine import Engine
from tfanet_engines.gpu import gpu_for
from tfanet_engines.plan_lane import Lane, LanePool, OpenPlan
from tfanet_engines.runtime_cache import RuntimeCache, cache_path
from tfanet_engines.sidecar import Sidecar
from tfanet_engines.trt_api import MODULES, load_backend, make_logger

if TYPE_CHECKING:
    import torch


class PlanEngine(Engine):
    """See `Engine`. The sidecar is compared with file and machine before the plan is opened.

    Memory on the GPU: the weights once, and for each of at most `lanes` lanes `lane_bytes`.
    """

    kind = "plan"

    def __init__(
        self,
        file: Path,
        *,
        trust: bool = False,
        lanes: int = 2,
        graphs: bool = True,
        extra: Sequence[TensorSpec] = (),
    ) -> None:
        """`extra` are additional outputs of a plan that was built for inspection, one pair at a time."""
        sidecar = Sidecar.read(file)
        _check_kind(file, sidecar)
        if [spec.name for spec in extra] != sidecar.proof.get("extra_outputs", []):
            raise UserError(f"{file} is a plan to look into, not one to deploy; {sidecar.remedy}")
        # What is hashed is what is opened, whatever happens to the file in between.
        plan = require_file(file, "plan").read_bytes()
        sidecar.check_digest(file, hashlib.sha256(plan).hexdigest())
        if not trust:
            trusted.require(file, sidecar)
        device = gpu_for(file, sidecar)
        trt = _library(file, sidecar)
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        _check_header(trt, self._runtime, file, sidecar, plan)
        if sidecar.version_compatible:
            # Such a plan brings the part of the library that runs it, as machine code.
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        del plan
        if self._engine is None:
            errors = "; ".join(self._logger.errors)
            raise UserError(f"{trt.__name__} cannot open {file}: {errors}; {sidecar.remedy}")
        name = f"{file.name} ({trt.__name__} {trt.__version__})"
        self._config, self._cache = _runtime_config(trt, self._engine, sidecar, device)
        signature = dataclasses.replace(signature_of(sidecar.model_config()), extra=(*extra,))
        smallest, optimal, largest = self._engine.get_tensor_profile_shape(signature.image.name, 0)
        self.batch = smallest[0], optimal[0], largest[0]
        """Smallest, optimal and largest batch of the plan."""
        self._plan = OpenPlan(
            name=name,
            engine=self._engine,
            new_context=self._new_context,
            errors=self._logger.errors,
            device=device,
            signature=signature,
            largest=self.batch[2],
            graphs=graphs,
        )
        self._strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._pool = LanePool(lambda: Lane(self._plan), lanes)
        super().__init__(file, sidecar.model_config(), f"{trt.__name__} {trt.__version__}", str(device))

    @property
    def lane_bytes(self) -> int:
        """Device memory of a lane, besides what the library keeps for each of its contexts."""
        return self._plan.lane_bytes

    def warm_up(self, batch: int = 1, calls: int = 2) -> float:
        """As `Engine.warm_up`, on every lane, and keep the kernels that were compiled for the next start."""
        self._check_batch(batch)
        images, tokens = self._blank(batch)
        began = time.perf_counter()
        with self._pool.all_lanes() as lanes:
            for lane in lanes:
                for _ in range(calls):
                    lane.infer(images, tokens)
        seconds = time.perf_counter() - began
        if self._cache is not None:
            self._cache.save()
        return seconds

    def _infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        self._check_batch(len(images))
        with self._pool.lane() as lane:
            return lane.infer(images, tokens)

    def _infer_tensors(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        self._check_batch(len(images))
        with self._pool.lane() as lane:
            return lane.infer_tensors(images, tokens)

    def look(self, images: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The extra outputs for one pair, by name; see `infer` for the inputs."""
        self._check_batch(len(images))
        with self._pool.lane() as lane:
            return lane.look(images, tokens)

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
        # TensorRT wants the contexts gone before the engine, and the engine before the runtime.
        del self._pool, self._plan, self._cache, self._config
        del self._engine
        del self._runtime


def _check_kind(file: Path, sidecar: Sidecar) -> None:
    """`UserError` unless the sidecar is that of a plan, built by a library that is known here."""
    if sidecar.kind != "plan" or not sidecar.compute_capabilities:
        raise UserError(f"the sidecar of {file} describes no plan; {sidecar.remedy}")
    if sidecar.builder not in MODULES.values():
        raise UserError(f"{file} was built by {sidecar.builder!r}, which is unknown here; {sidecar.remedy}")


def _library(file: Path, sidecar: Sidecar) -> Any:
    """The module that opens the plan; `UserError` when it is missing or not of the builder's version.

    A version-compatible plan is opened by every version of the same major number.
    """
    (backend,) = (name for name, module in MODULES.items() if module == sidecar.builder)
    try:
        _, trt = load_backend(backend)
    except UserError as error:
        raise UserError(f"{file} is a plan of {sidecar.builder}: {error}; or {sidecar.remedy}") from error
    counted = 1 if sidecar.version_compatible else 3
    if trt.__version__.split(".")[:counted] != sidecar.builder_version.split(".")[:counted]:
        raise UserError(
            f"{file} was built by {sidecar.builder} {sidecar.builder_version}, and {trt.__version__} is "
            f"installed; plans run on the version that built them: {sidecar.remedy}"
        )
    return trt


def _check_header(trt: Any, runtime: Any, file: Path, sidecar: Sidecar, plan: bytes) -> None:
    """`UserError` where TensorRT-RTX sees from the first bytes that it cannot run the plan here."""
    if not hasattr(runtime, "get_engine_validity"):  # TensorRT has no such question
        return
    verdict, reasons = runtime.get_engine_validity(plan)
    if verdict == trt.EngineValidity.INVALID:
        kinds = trt.EngineInvalidityDiagnostics.__members__.items()
        said = ", ".join(name for name, kind in kinds if int(reasons) & int(kind)) or "no reason given"
        raise UserError(f"{trt.__name__} refuses {file}: {said}; {sidecar.remedy}")


def _runtime_config(
    trt: Any, engine: Any, sidecar: Sidecar, device: torch.device
) -> tuple[Any, RuntimeCache | None]:
    """TensorRT-RTX's settings of a context, and its cache of kernels; two times None for TensorRT.

    Kernels for a batch size are compiled before the first call of that size returns, not behind it: a CUDA
    graph would otherwise keep the slow ones that stand in for them.
    """
    if not hasattr(trt, "IRuntimeCache"):
        return None, None
    import torch

    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # lanes capture their own
    path = cache_path(sidecar.file_sha256, trt.__version__, torch.cuda.get_device_name(device))
    return config, RuntimeCache(config, path)
