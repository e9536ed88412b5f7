"""The CPU implementations of the scans: each checked against the oracle in FP64, then timed in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from inputs import cross_inputs, scan_inputs
from kernel_choice import vectorised_paths
from onnx import TensorProto, helper, numpy_helper
from onnx_cpu import onnx_call
from options import Shape
from timing import in_turns
from torch import Tensor

from tfanet.errors import VerificationError
from tfanet.ops import cross_selective_scan, native, selective_scan
from tfanet.ops.cross_selective_scan import cross_selective_scan_loop
from tfanet.ops.selective_scan import selective_scan_loop
from tfanet_export.functions import function_protos
from tfanet_plugins.operations import CROSS_SCAN, DOMAIN, DOMAIN_VERSION, OPSET, SCAN

TORCH, ONNX = "PyTorch", "ONNX Runtime"
COMPILED, VECTORISED, BODY = "compiled", "vectorised", "function body"
BASELINES = {TORCH: VECTORISED, ONNX: BODY}
"""By runtime, what runs without our compiled kernels."""
TOLERANCE = 1e-5
"""Largest error, over the largest value of the oracle, of an implementation that may be timed."""
CPU = torch.device("cpu")
INPUTS = {
    SCAN: ("u", "delta", "A", "B", "C", "D", "delta_bias"),
    CROSS_SCAN: ("x", "p", "dt_weight", "A", "D", "delta_bias"),
}
_PARAMETERS = {"A", "D", "delta_bias", "dt_weight"}
_FUNCTIONS = {
    SCAN: (selective_scan, selective_scan_loop),
    CROSS_SCAN: (cross_selective_scan, cross_selective_scan_loop),
}


@dataclass(frozen=True)
class Row:
    """Measurements of one implementation at one shape."""

    operation: str
    runtime: str
    name: str
    tokens: int
    channels: int
    seconds: list[float]
    """Of every timed run."""
    error: float
    """Largest difference from the oracle, over the oracle's largest value."""


def measure(shape: Shape, threads: int, repeats: int) -> list[Row]:
    """A row for every implementation of both scans, FP32 and batch 1.

    Raises `VerificationError` if a result differs from the oracle's.
    """
    torch.set_num_threads(threads)
    rows = []
    for operation, (_, oracle) in _FUNCTIONS.items():
        inputs = make_inputs(operation, shape)
        with torch.inference_mode(), TemporaryDirectory(prefix="scan-cpu-") as folder:
            calls = implementations(operation, inputs, threads, Path(folder))
            expected = oracle(*(x.double() for x in inputs.values())).numpy()
            errors = {key: _check(operation, key, call(), expected) for key, call in calls.items()}
            seconds = in_turns(
                {f"{operation}, {', '.join(key)}": call for key, call in calls.items()}, repeats
            )
        rows += [
            Row(operation, *key, shape.length, shape.channels, runs, errors[key])
            for key, runs in zip(calls, seconds.values(), strict=True)
        ]
    return rows


def make_inputs(operation: str, shape: Shape) -> dict[str, Tensor]:
    """FP32 inputs by name, batch 1, on the CPU."""
    make = scan_inputs if operation == SCAN else cross_inputs
    return dict(zip(INPUTS[operation], make(shape, 1, torch.float32, CPU), strict=True))


def implementations(
    operation: str, inputs: dict[str, Tensor], threads: int, folder: Path
) -> dict[tuple[str, str], Callable[[], np.ndarray]]:
    """Calls by runtime and name; without the compiled library only the baselines.

    ONNX Runtime has a compiled kernel of the 2-D scan only.
    """
    function = _FUNCTIONS[operation][0]
    path = folder / f"{operation}.onnx"
    onnx.save(one_node(operation, inputs), path)
    feed = {name: x.numpy() for name, x in inputs.items() if name not in _PARAMETERS}

    def compiled() -> np.ndarray:
        return function(*inputs.values()).numpy()

    def vectorised() -> np.ndarray:
        with vectorised_paths():
            return compiled()

    built = native.library() is not None
    calls: dict[tuple[str, str], Callable[[], np.ndarray]] = {(TORCH, VECTORISED): vectorised}
    if built:
        calls[TORCH, COMPILED] = compiled
    calls[ONNX, BODY] = onnx_call(path, threads, feed, native=False)
    if built and operation == CROSS_SCAN:
        calls[ONNX, COMPILED] = onnx_call(path, threads, feed, native=True)
    return calls


def _check(operation: str, key: tuple[str, str], actual: np.ndarray, expected: np.ndarray) -> float:
    error = float(np.abs(actual - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise VerificationError(
            f"{operation}, {', '.join(key)}: relative error {error:.1e} exceeds {TOLERANCE:.0e}"
        )
    return error


def cpu_function(operation: str, states: int) -> onnx.FunctionProto:
    """The function body of the operation for CPUs."""
    functions = function_protos("cpu", states=states, longest=1)
    return next(function for function in functions if function.name == operation)


def one_node(operation: str, inputs: dict[str, Tensor]) -> onnx.ModelProto:
    """A model with one node of `operation`, FP32; parameters are constants, only the batch is dynamic."""
    graph_inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *x.shape[1:]])
        for name, x in inputs.items()
        if name not in _PARAMETERS
    ]
    constants = [
        numpy_helper.from_array(inputs[name].numpy(), name) for name in inputs if name in _PARAMETERS
    ]
    rank = len(graph_inputs[0].type.tensor_type.shape.dim)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)
    node = helper.make_node(operation, list(inputs), ["y"], domain=DOMAIN)
    return helper.make_model(
        helper.make_graph([node], operation, graph_inputs, [output], constants),
        functions=[cpu_function(operation, inputs["A"].shape[1])],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
        ir_version=10,
    )
