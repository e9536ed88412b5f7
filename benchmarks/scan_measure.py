"""One formulation of a scan, checked and timed in a process of its own, without PyTorch for ONNX Runtime.

`prepare` writes the inputs, the oracle's result and the ONNX models of a shape into a folder; `measure` reads
what it needs from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet.console import peak_memory
from tfanet.errors import VerificationError

if TYPE_CHECKING:
    import numpy as np
    import onnx

TORCH, ONNX = "PyTorch", "ONNX Runtime"
SHIPS = "ships"
"""The formulation that users get: what is compiled where there is a compiler."""
INPUTS = {
    "SelectiveScan": ("u", "delta", "A", "B", "C", "D", "delta_bias"),
    "CrossSelectiveScan": ("x", "p", "dt_weight", "A", "D", "delta_bias"),
}
_PARAMETERS = ("A", "D", "delta_bias", "dt_weight")
TOLERANCE = 1e-5
"""Largest error, as a share of the largest value, of a formulation that may be timed."""
_DIRECTIONS, _DIM_PER_RANK = 4, 32


@dataclass(frozen=True)
class Shape:
    """Sizes of a scan as SS2D has it: one picture, 4 directions, rank of dt = channels / 32."""

    length: int
    """Tokens of a sequence, pixels of a map."""
    channels: int
    """Of one direction."""
    states: int = 1

    @property
    def map(self) -> tuple[int, int]:
        """Height and width, as close to each other as `length` allows."""
        height = next(n for n in range(math.isqrt(self.length), 0, -1) if self.length % n == 0)
        return height, self.length // height

    @property
    def rank(self) -> int:
        return max(1, self.channels // _DIM_PER_RANK)


@dataclass(frozen=True)
class Formulation:
    """A way to compute an operation."""

    operation: str
    runtime: str
    name: str


@dataclass(frozen=True)
class Job:
    """What `measure` needs to know."""

    formulation: Formulation
    shape: Shape
    folder: Path
    threads: int
    repeats: int
    limit: float
    """Seconds; no run begins once a formulation has taken as long."""


@dataclass(frozen=True)
class Measurement:
    """What `measure` found."""

    seconds: list[float] = field(default_factory=list)
    """Of the runs after the first, or of the first alone when that took the whole limit."""
    peak_bytes: int = 0
    """The process's peak after the first run less its peak before it, inputs loaded."""
    error: float = 0.0
    """Largest difference from the oracle as a share of the oracle's largest value."""


def prepare(shape: Shape, folder: Path) -> list[Formulation]:
    """Write all that the formulations need for `shape` into `folder`; return every formulation there is."""
    import numpy as np
    import onnx
    import torch
    from formulations import TORCH as IN_TORCH
    from formulations import onnx_formulations

    from tfanet.ops.cross_selective_scan import cross_selective_scan_loop
    from tfanet.ops.selective_scan import selective_scan_loop

    oracles = {"SelectiveScan": selective_scan_loop, "CrossSelectiveScan": cross_selective_scan_loop}
    for operation, oracle in oracles.items():
        values = make_inputs(operation, shape)
        for name, value in values.items():
            np.save(_file(folder, operation, name), value)
        with torch.inference_mode():
            expected = oracle(*(torch.from_numpy(value).double() for value in values.values()))
        np.save(_file(folder, operation, "expected"), expected.float().numpy())
    in_onnx = onnx_formulations(states=shape.states, length=shape.length)
    for (operation, name), functions in in_onnx.items():
        onnx.save(
            one_node(operation, functions, make_inputs(operation, shape)), _model(folder, operation, name)
        )
    return [
        Formulation(operation, runtime, name)
        for operation in INPUTS
        for runtime, known in ((TORCH, IN_TORCH), (ONNX, in_onnx))
        for of, name in known
        if of == operation
    ]


def measure(job: Job) -> Measurement:
    """Run a formulation, hold its result against the oracle's, then time it.

    Raises `VerificationError` when the result is not the oracle's.
    """
    import numpy as np

    operation = job.formulation.operation
    values = {name: np.load(_file(job.folder, operation, name)) for name in INPUTS[operation]}
    call = (_torch_call if job.formulation.runtime == TORCH else _onnx_call)(job, values)
    before, started = peak_memory(), time.perf_counter()
    result = call()
    first, peak = time.perf_counter() - started, peak_memory() - before
    expected = np.load(_file(job.folder, operation, "expected"))
    error = float(np.abs(result - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise VerificationError(
            f"{job.formulation.runtime}, {operation}, {job.formulation.name!r} at {job.shape.length} tokens "
            f"is off by {error:.1e} of the largest value; {TOLERANCE:.0e} is allowed"
        )
    seconds: list[float] = []
    while len(seconds) < job.repeats and first + sum(seconds) < job.limit:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return Measurement(seconds or [first], peak, error)


def make_inputs(operation: str, shape: Shape) -> dict[str, np.ndarray]:
    """FP32 inputs in the order of `INPUTS`; steps and decays as a fresh Mamba has them."""
    import numpy as np

    rng = np.random.default_rng(0)
    scanned, rank, states = _DIRECTIONS * shape.channels, shape.rank, shape.states

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size, dtype=np.float32)

    steps = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), scanned))
    values = {
        "A": -np.exp(0.5 * normal(scanned, states)),
        "D": normal(scanned),
        "delta_bias": np.log(np.expm1(steps)).astype(np.float32),
    }
    if operation == "SelectiveScan":
        values |= {name: normal(1, scanned, shape.length) for name in ("u", "delta")}
        values |= {name: normal(1, _DIRECTIONS, states, shape.length) for name in ("B", "C")}
    else:
        values["x"] = normal(1, *shape.map, shape.channels)
        values["p"] = normal(1, *shape.map, _DIRECTIONS * (rank + 2 * states))
        values["dt_weight"] = normal(scanned, rank) / np.float32(rank**0.5)
    return {name: values[name] for name in INPUTS[operation]}


def one_node(
    operation: str, functions: list[onnx.FunctionProto], values: dict[str, np.ndarray]
) -> onnx.ModelProto:
    """A model of one node with these functions; parameters are its constants, only the batch is dynamic."""
    from onnx import TensorProto, helper, numpy_helper

    from tfanet_plugins.operations import DOMAIN, DOMAIN_VERSION, OPSET

    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *value.shape[1:]])
        for name, value in values.items()
        if name not in _PARAMETERS
    ]
    constants = [numpy_helper.from_array(values[name], name) for name in values if name in _PARAMETERS]
    rank = len(inputs[0].type.tensor_type.shape.dim)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)
    node = helper.make_node(operation, list(values), ["y"], domain=DOMAIN)
    graph = helper.make_graph([node], operation, inputs, [output], constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)


def _torch_call(job: Job, values: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    import torch
    from formulations import TORCH as IN_TORCH

    torch.set_num_threads(job.threads)
    operation = job.formulation.operation
    function = IN_TORCH[operation, job.formulation.name]
    tensors = [torch.from_numpy(value) for value in values.values()]

    def call() -> np.ndarray:
        with torch.inference_mode():
            return function(*tensors).numpy()

    with (
        torch.inference_mode()
    ):  # what PyTorch loads at an operation's first call is not the operation's memory
        function(*map(torch.from_numpy, make_inputs(operation, Shape(length=4, channels=2)).values()))
    return call


def _onnx_call(job: Job, values: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    name = job.formulation.name
    path = _model(job.folder, job.formulation.operation, name)
    session = open_session(path, job.threads, native=name == SHIPS)
    feed = {name: value for name, value in values.items() if name not in _PARAMETERS}
    return lambda: session.run(None, feed)[0]


def open_session(path: Path, threads: int, profile: Path | None = None, *, native: bool = False) -> Any:
    """An ONNX Runtime session on the CPU; with `profile` it notes every node, for a file that begins so.

    With `native` our compiled kernel runs where there is one, else the function bodies of the file.
    """
    import onnxruntime

    from tfanet.ops.native import library

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if native and (kernels := library()):
        options.register_custom_ops_library(str(kernels))
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def _file(folder: Path, operation: str, name: str) -> Path:
    return folder / f"{operation}-{name}.npy"


def _model(folder: Path, operation: str, name: str) -> Path:
    return folder / f"{operation}-{name}.onnx"
