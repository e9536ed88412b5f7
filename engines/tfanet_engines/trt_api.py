"""What TensorRT and TensorRT-RTX share in Python; the module itself is a parameter, called `trt`."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from tfanet.errors import UserError

Backend = Literal["tensorrt-rtx", "tensorrt"]
MODULES: dict[Backend, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
INSTALL: dict[Backend, str] = {
    "tensorrt-rtx": "pip install tensorrt-rtx",
    "tensorrt": 'pip install "tfanet[tensorrt]"',
}

WEIGHT_HOLDERS = {
    "CONSTANT": ("IConstantLayer", ("weights",)),
    "CONVOLUTION": ("IConvolutionLayer", ("kernel", "bias")),
    "DECONVOLUTION": ("IDeconvolutionLayer", ("kernel", "bias")),
    "SCALE": ("IScaleLayer", ("scale", "shift", "power")),
}
INTERRUPTED = 130
"""The exit code of a process that Ctrl-C ended."""

COMPUTE_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")


def load_backend(backend: str) -> tuple[Backend, ModuleType]:
    """The name and Python module of `auto`, `tensorrt-rtx` or `tensorrt`; auto prefers TensorRT-RTX.

    Raises `UserError` when it is unknown or not installed.
    """
    if backend not in ("auto", *MODULES):
        raise UserError(f"unknown backend {backend!r}; give auto, {' or '.join(MODULES)}")
    wanted: list[Backend] = [name for name in MODULES if backend in ("auto", name)]
    for name in wanted:
        if importlib.util.find_spec(MODULES[name]):
            return name, _import(name)
    advice = " or ".join(INSTALL[name] for name in wanted)
    raise UserError(f"{' and '.join(wanted)} cannot be imported; install with: {advice}")


def _import(name: Backend) -> ModuleType:
    try:
        return importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:
        raise UserError(f"{name} is installed but does not load ({error}); {INSTALL[name]}") from error


@dataclass(frozen=True)
class PrecisionProof:
    """Types counted in a parsed network. Strong typing makes them those of the engine."""

    half_weights: int
    """Elements of FP16 weights; `float_weights` the same for FP32."""
    float_weights: int
    half_weight_bytes: int
    float_weight_bytes: int
    half_weight_share: float
    """FP16 elements of all FP16 and FP32 elements, 0..1."""
    half_layer_share: float
    """Layers with an FP16 output, of those whose output is FP16 or FP32."""
    half_compute_share: float
    """The same over convolutions and matrix products alone."""
    layers: int


def prove_precision(trt: ModuleType, network: Any) -> PrecisionProof:
    """Count the types of weights and layer outputs in an `INetworkDefinition`."""
    elements: Counter[str] = Counter()
    size: Counter[str] = Counter()
    outputs: Counter[str] = Counter()
    compute: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type.name
        types = {layer.get_output(i).dtype.name for i in range(layer.num_outputs)}
        for name in ("HALF", "FLOAT"):
            if name in types:
                outputs[name] += 1
                compute[name] += kind in COMPUTE_LAYERS
                break
        for weights in _weights(trt, layer, kind):
            name = getattr(weights.dtype, "name", str(weights.dtype)).upper()
            name = {"FLOAT16": "HALF", "FLOAT32": "FLOAT"}.get(name, name)
            elements[name] += weights.size
            size[name] += weights.nbytes
    return PrecisionProof(
        half_weights=elements["HALF"],
        float_weights=elements["FLOAT"],
        half_weight_bytes=size["HALF"],
        float_weight_bytes=size["FLOAT"],
        half_weight_share=_share(elements),
        half_layer_share=_share(outputs),
        half_compute_share=_share(compute),
        layers=network.num_layers,
    )


def _weights(trt: ModuleType, layer: Any, kind: str) -> Iterator[Any]:
    """The weights a layer holds itself: NumPy arrays, or `trt.Weights` of types that NumPy lacks."""
    if kind not in WEIGHT_HOLDERS:
        return
    type_name, attributes = WEIGHT_HOLDERS[kind]
    # The bindings return every layer as the base class; this is their documented way to the derived one.
    layer.__class__ = getattr(trt, type_name)
    for attribute in attributes:
        weights = getattr(layer, attribute)
        if weights is not None and weights.size:
            yield weights


def _share(counts: Counter[str]) -> float:
    total = counts["HALF"] + counts["FLOAT"]
    return counts["HALF"] / total if total else 0.0


def make_logger(trt: ModuleType) -> Any:
    """A `trt.ILogger` that prints nothing and keeps errors in its list `errors`."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            # Without a driver every error is followed by one about CUDA, which explains nothing.
            if severity <= trt.ILogger.Severity.ERROR and "catchCudaError" not in message:
                self.errors.append(message)

    return Logger()


def parser_errors(parser: Any) -> list[str]:
    """The ONNX parser's errors in full, each with its node."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        text = " ".join(line for line in error.desc().splitlines() if "catchCudaError" not in line)
        found.append(f"{error.node_operator() or 'model'} {error.node_name()!r}: {text}")
    return found


def build(trt: ModuleType, builder: Any, network: Any, config: Any, parser: Any, *, show: bool) -> Any:
    """The serialised plan, or None on failure; with `show`, a bar for each phase on stderr.

    The build runs in its own thread, because one step of it can take minutes and hold back Ctrl-C as long:
    `KeyboardInterrupt` is raised at once, and the build gives up after its current step.
    """
    result: list[Any] = []
    stop = threading.Event()

    def work(*_owners_of_the_weights: Any) -> None:
        result.append(builder.build_serialized_network(network, config))

    # The network points into the parser's memory, and an interrupted build may outlive the caller.
    thread = threading.Thread(target=work, args=(parser,), name="build", daemon=True)
    with _monitor(trt, stop, show) as config.progress_monitor:
        try:
            thread.start()
            while thread.is_alive():
                thread.join(0.1)
        except KeyboardInterrupt:
            stop.set()
            atexit.register(_leave_at_once, thread)
            raise
    return result[0] if result else None


def _leave_at_once(build: threading.Thread) -> None:
    """End the process without TensorRT's own clean-up, which crashes while a build is still running."""
    if build.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


@contextmanager
def _monitor(trt: ModuleType, stop: threading.Event, show: bool) -> Iterator[Any]:
    """Yield a `trt.IProgressMonitor` that ends the build once `stop` is set."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tasks: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            indent = "  " if parent_phase else ""
            self.tasks[phase_name] = progress.add_task(indent + phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.update(self.tasks[phase_name], completed=step + 1)
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            progress.remove_task(self.tasks.pop(phase_name))

    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not show) as progress:
        yield Monitor()
