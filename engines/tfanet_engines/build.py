"""ONNX -> plan: a strongly typed engine for a named GPU, built without one by TensorRT-RTX."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tfanet.console import peak_memory
from tfanet.errors import UserError, VerificationError
from tfanet.files import atomic_path, require_writable, sha256
from tfanet.signature import BATCH, MAX_BATCH, Signature, signature_of
from tfanet_engines import trust
from tfanet_engines.onnx_file import OnnxFile, read_onnx, with_plugin_bodies
from tfanet_engines.sidecar import Sidecar
from tfanet_engines.targets import compute_capability, sm
from tfanet_engines.trt_api import (
    Backend,
    PrecisionProof,
    build,
    load_backend,
    make_logger,
    parser_errors,
    prove_precision,
)
from tfanet_plugins import not_plugin_layers, register_all

Batch = tuple[int, int, int]
Bindings = tuple[tuple[str, str, tuple[int, ...]], ...]
DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT64": "int64", "INT32": "int32"}


@dataclass(frozen=True)
class BuildReport:
    """What was built and what proves it."""

    plan: Path
    sidecar: Path
    backend: Backend
    builder_version: str
    compute_capability: str
    precision: Literal["fp32", "fp16"]
    proof: PrecisionProof
    plugin_layers: int
    """Layers that run our kernels; 0 for TensorRT-RTX, which has no such plugins."""
    bindings: Bindings
    """Name, dtype and shape of every input and output; -1 is the batch."""
    batch: Batch
    """Smallest, optimal and largest batch."""
    size_bytes: int
    seconds: float
    peak_memory_bytes: int
    """Of this process so far, an export before the build included."""


def build_plan(
    onnx_path: str | Path,
    plan_path: str | Path,
    *,
    backend: str = "auto",
    target: str = "rtx4090",
    batch: Batch = (1, 1, 8),
    rebuild: str | None = None,
    progress: bool = False,
) -> BuildReport:
    """Build `plan_path` and its sidecar from an ONNX file that `tfanet-export onnx` wrote.

    `backend` is `tensorrt-rtx` (for any GPU of `targets.RTX_CAPABILITIES`, none needed here), `tensorrt` (for
    the GPU of this machine) or `auto`. `target` is a GPU's name or an sm number. `rebuild` is the command
    that the sidecar names; by default one that calls this function.

    TF32 is off, so FP32 parts of the network are computed in FP32. Raises `UserError` for bad arguments and
    files, `VerificationError` when the network does not parse, does not build, or is not what the ONNX file
    promised; `KeyboardInterrupt` on Ctrl-C. In each case nothing is left under `plan_path`.
    """
    capability = compute_capability(target)
    if not 1 <= batch[0] <= batch[1] <= batch[2] <= MAX_BATCH:
        raise UserError(f"batch must be 1 <= smallest <= optimal <= largest <= {MAX_BATCH}, not {batch}")
    plan_path = Path(plan_path)
    require_writable(plan_path)
    trust.require_usable()
    source = read_onnx(onnx_path)
    name, trt = load_backend(backend)
    start = time.perf_counter()
    if name == "tensorrt":
        register_all(capability)
    plugins = source.plugin_layers if name == "tensorrt" else ()
    plan, proof, bindings = _build(trt, source, capability, batch, plugins, progress)
    seconds = time.perf_counter() - start

    with atomic_path(plan_path) as temporary:
        temporary.write_bytes(plan)
    onnx_parity = source.sidecar.parity if source.sidecar else None
    sidecar = Sidecar.of(
        source.config,
        kind="plan",
        weights_sha256=source.weights_sha256,
        precision=source.precision,
        proof=dataclasses.asdict(proof)
        | {"plugin_layers": len(plugins), "parity_of_the_onnx_file": onnx_parity},
        builder=trt.__name__,
        builder_version=trt.__version__,
        compute_capabilities=[capability],
        batch=batch,
        onnx_sha256=source.sha256,
        file_sha256=sha256(plan_path),
        cost={
            "seconds": round(seconds, 1),
            "peak_memory_bytes": peak_memory(),
            "bytes": plan_path.stat().st_size,
            "layers": proof.layers,
        },
        rebuild=rebuild or _rebuild_command(source.path, plan_path, name, target, batch),
    )
    trust.remember(sidecar.file_sha256)
    return BuildReport(
        plan=plan_path,
        sidecar=sidecar.write(plan_path),
        backend=name,
        builder_version=trt.__version__,
        compute_capability=capability,
        precision=source.precision,
        proof=proof,
        plugin_layers=len(plugins),
        bindings=bindings,
        batch=batch,
        size_bytes=plan_path.stat().st_size,
        seconds=seconds,
        peak_memory_bytes=peak_memory(),
    )


def _build(
    trt: ModuleType,
    source: OnnxFile,
    capability: str,
    batch: Batch,
    plugins: Sequence[str],
    progress: bool,
) -> tuple[Any, PrecisionProof, Bindings]:
    """The plan's bytes, the proof of its precision and its bindings."""
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not _parse(parser, source.path, bool(plugins)):
        errors = "; ".join(parser_errors(parser))
        raise VerificationError(f"{trt.__name__} cannot parse {source.path}: {errors}")
    proof = prove_precision(trt, network)
    bindings = _bindings(network)
    _check(source, proof, bindings)
    if missing := not_plugin_layers(trt, network, plugins):
        raise VerificationError(
            f"{trt.__name__} took the function body instead of the plugin for {len(missing)} of "
            f"{len(plugins)} nodes of {source.path}: {', '.join(missing[:5])}"
        )

    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    _aim(trt, config, capability)
    profile = builder.create_optimization_profile()
    for name, _, shape in bindings[: network.num_inputs]:
        profile.set_shape(name, *((size, *shape[1:]) for size in batch))
    config.add_optimization_profile(profile)
    plan = build(trt, builder, network, config, parser, show=progress)
    if plan is None:
        raise VerificationError(f"{trt.__name__} cannot build {source.path}: {'; '.join(logger.errors)}")
    return plan, proof, bindings


def _parse(parser: Any, path: Path, plugins: bool) -> bool:
    """Parse the ONNX file, with bodies made of plugins if there are to be some."""
    if plugins:
        return parser.parse(with_plugin_bodies(path), str(path))  # where to look for external weights
    return parser.parse_from_file(str(path))


def _aim(trt: ModuleType, config: Any, capability: str) -> None:
    """Build for `capability`: TensorRT-RTX for any, TensorRT for the GPU of this machine only."""
    if hasattr(config, "set_compute_capability"):
        level = getattr(trt.ComputeCapability, sm(capability).upper(), None)
        if level is None:
            raise UserError(f"{trt.__name__} {trt.__version__} does not build for {sm(capability)}")
        config.num_compute_capabilities = 1
        config.set_compute_capability(level, 0)
        return
    import torch

    here = "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else None
    if here != capability:
        raise UserError(
            f"tensorrt builds for the GPU it runs on ({sm(here) if here else 'none here'}), not for "
            f"{sm(capability)}; use backend tensorrt-rtx, or build on that GPU"
        )


def _bindings(network: Any) -> Bindings:
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return tuple((t.name, _dtype(t), tuple(t.shape)) for t in tensors)


def _dtype(tensor: Any) -> str:
    name: str = tensor.dtype.name
    return DTYPES.get(name, name)


def _check(source: OnnxFile, proof: PrecisionProof, bindings: Bindings) -> None:
    """Raise `VerificationError` unless the network has the promised bindings and precision."""
    promised = _promised(signature_of(source.config))
    if bindings != promised:
        raise VerificationError(f"the network of {source.path} has bindings {bindings}, not {promised}")
    if source.sidecar and source.sidecar.precision != source.precision:
        raise VerificationError(
            f"{source.path} is {source.precision} by its weights, {source.sidecar.precision} by its sidecar"
        )
    half = proof.half_weight_share > 0.5
    if half != (source.precision == "fp16"):
        raise VerificationError(
            f"{source.path} is {source.precision}, but {proof.half_weight_share:.1%} of the network's "
            f"weights are half precision ({proof.half_weights} of {proof.half_weights + proof.float_weights})"
        )


def _promised(signature: Signature) -> Bindings:
    specs = (*signature.inputs, *signature.outputs)
    return tuple((s.name, s.dtype, tuple(-1 if n == BATCH else int(n) for n in s.shape)) for s in specs)


def _rebuild_command(onnx: Path, plan: Path, backend: str, target: str, batch: Batch) -> str:
    call = f"build_plan({str(onnx)!r}, {str(plan)!r}, backend={backend!r}, target={target!r}, batch={batch})"
    return f"python -c {shlex.quote(f'from tfanet_engines import build_plan; {call}')}"
