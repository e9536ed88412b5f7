"""ONNX file -> bytes of a plan, inside this process.

Calls the library directly rather than through Polygraphy's loaders, which were tried: they drop the path of a
model that is parsed from memory, and with it external weights; print parser errors instead of raising them;
always create a timing cache; and bind the process to one of the two libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tfanet.errors import UserError, VerificationError
from tfanet_engines import timing_cache
from tfanet_engines.gpu import MIB
from tfanet_engines.onnx_file import with_plugin_bodies
from tfanet_engines.options import BuildOptions
from tfanet_engines.proof import EngineLayers, PrecisionProof, inspect_engine, prove_precision
from tfanet_engines.targets import sm
from tfanet_engines.trt_api import Backend, load_backend, make_logger, parser_errors
from tfanet_plugins import missing_plugin_layers, register_all

Bindings = tuple[tuple[str, str, tuple[int, ...]], ...]
Progress = Callable[[str, int, int], None]
"""Called with a phase, the steps done and the number of steps; both are 0 when the phase has ended."""
DTYPES: dict[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "UINT8": "uint8",
    "INT64": "int64",
    "INT32": "int32",
}


@dataclass(frozen=True)
class Request:
    """A build whose arguments have been checked."""

    onnx: Path
    backend: Backend
    capabilities: tuple[str, ...]
    """Compute capabilities to build for, as `8.9`; full TensorRT takes one, that of this machine."""
    plugins: tuple[str, ...]
    """A name for each layer that must become a plugin; empty to use the function bodies."""
    options: BuildOptions


@dataclass(frozen=True)
class Built:
    """What is known of a built plan."""

    version: str
    """Version of the library."""
    proof: PrecisionProof
    inspected: EngineLayers | None
    """Layers of the finished engine, if it could be opened."""
    bindings: Bindings
    """Name, dtype and shape of every input and output; -1 is the batch."""
    warning: str = ""
    """A problem that does not affect the plan."""


def build(request: Request, progress: Progress) -> tuple[Any, Built]:
    """The plan's bytes, and its description.

    Raises `UserError` if the library does not support an option, `VerificationError` if the network does not
    parse or build, or nodes did not become plugins.
    """
    _, trt = load_backend(request.backend)
    if request.plugins:
        register_all(request.capabilities[0])
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not _parse(parser, request.onnx, bool(request.plugins)):
        errors = "; ".join(parser_errors(parser))
        raise VerificationError(f"{trt.__name__} cannot parse {request.onnx}: {errors}")
    proof, bindings = prove_precision(trt, network), _bindings(network)
    if missing := missing_plugin_layers(trt, network, request.plugins):
        raise VerificationError(
            f"{trt.__name__} used the function body instead of the plugin for {len(missing)} of "
            f"{len(request.plugins)} nodes of {request.onnx}: {_named(missing)}"
        )
    config = _configure(trt, builder, request)
    profile = builder.create_optimization_profile()
    for name, _, shape in bindings[: network.num_inputs]:
        profile.set_shape(name, *((size, *shape[1:]) for size in request.options.batch))
    config.add_optimization_profile(profile)
    config.progress_monitor = _monitor(trt, progress)
    keep_timings = request.backend == "tensorrt" and request.options.timing_cache is not False
    if keep_timings:
        timing_cache.load(config, trt.__version__, request.capabilities[0])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise VerificationError(f"{trt.__name__} cannot build {request.onnx}: {'; '.join(logger.errors)}")
    warning = timing_cache.save(config, trt.__version__, request.capabilities[0]) if keep_timings else ""
    inspected = inspect_engine(trt, logger, plan) if request.backend == "tensorrt" else None
    return plan, Built(trt.__version__, proof, inspected, bindings, warning)


def _named(layers: list[str], most: int = 20) -> str:
    more = f" and {len(layers) - most} more" if len(layers) > most else ""
    return ", ".join(layers[:most]) + more


def _parse(parser: Any, path: Path, plugins: bool) -> bool:
    """Parse the ONNX file; with `plugins`, its function bodies are replaced by plugins."""
    if plugins:
        return parser.parse(with_plugin_bodies(path), str(path))  # the path locates external weights
    return parser.parse_from_file(str(path))


def _configure(trt: ModuleType, builder: Any, request: Request) -> Any:
    options, config = request.options, builder.create_builder_config()
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * MIB)
    if request.backend == "tensorrt-rtx":
        config.num_compute_capabilities = len(request.capabilities)
        for place, capability in enumerate(request.capabilities):
            level = getattr(trt.ComputeCapability, sm(capability).upper(), None)
            if level is None:
                raise UserError(f"{trt.__name__} {trt.__version__} does not build for {sm(capability)}")
            config.set_compute_capability(level, place)
        return config
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector then lists types
    if options.opt_level is not None:
        config.builder_optimization_level = options.opt_level
    if options.version_compat:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compat != "none":
        level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compat.upper(), None)
        if level is None:
            raise UserError(
                f"{trt.__name__} {trt.__version__} has no hardware compatibility {options.hardware_compat}"
            )
        config.hardware_compatibility_level = level
    return config


def _bindings(network: Any) -> Bindings:
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return tuple((t.name, _dtype(t), tuple(t.shape)) for t in tensors)


def _dtype(tensor: Any) -> str:
    name: str = tensor.dtype.name
    return DTYPES.get(name, name)


def _monitor(trt: ModuleType, progress: Progress) -> Any:
    """The library's progress monitor, which calls `progress`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step + 1, self.steps[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            progress(phase_name, 0, 0)

    return Monitor()
