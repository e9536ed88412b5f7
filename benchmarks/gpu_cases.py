"""The cases of `scan_gpu.py`: our kernels, other scans and the vectorised paths on the same inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from gpu_measure import Call, Candidate, Case, Result, Row, measure
from inputs import Normal, cross_inputs, model_inputs, scan_inputs
from kernel_choice import Kernels, our_kernels, vectorised_paths
from options import Shape
from other_scans import mamba_backward, mamba_scan, mamba_scan_fp32, oflex_backward, oflex_scan
from timing import EventTimer, Timer
from torch import Tensor

from tfanet.ops.traversals import scan_traversals

if TYPE_CHECKING:
    from tfanet.model import TFANet

SCAN, BACKWARD, CROSS, ATTENTION, MODEL = "scan", "backward", "cross", "attention", "model"
TRITON, VECTORISED, COMPILED = "ours, Triton", "vectorised, eager", "vectorised, torch.compile"
MAMBA, MAMBA_FP32, OFLEX = "mamba_ssm", "mamba_ssm, in and out FP32", "VMamba's oflex"
FUSED, UNFUSED = "ours, fused", "ours, unfused chain"
OUR_KERNELS = "our kernels"

DTYPES = {"FP16": torch.float16, "FP32": torch.float32}
REORDERED, ROUNDED, GRADIENT, CHAIN = 1e-4, 4e-3, 1e-3, 2e-2
"""Tolerances: FP32 sums in another order; results rounded to FP16; sums over all tokens in another order; a
step rounded to FP16 before the scan adds it up."""
MODEL_TOLERANCE = {"FP16": 5e-2, "FP32": 1e-3}

_scan_module = importlib.import_module("tfanet.ops.selective_scan")
_cross_module = importlib.import_module("tfanet.ops.cross_selective_scan")
_attention_module = importlib.import_module("tfanet.ops.linear_cross_attention")


def scan_case(shape: Shape, batch: int, dtype: str, device: torch.device, kernels: Kernels) -> Case:
    """The forward pass of the 1-D scan."""
    inputs = scan_inputs(shape, batch, DTYPES[dtype], device)
    reference = bound(_scan_module._forward, inputs)
    half = dtype != "FP32"
    candidates = [
        Candidate(TRITON, lambda: bound(kernels.scan, inputs), REORDERED, ours=True),
        Candidate(MAMBA, lambda: bound(mamba_scan(), inputs), ROUNDED if half else REORDERED),
    ]
    if half:
        candidates.append(Candidate(MAMBA_FP32, lambda: bound(mamba_scan_fp32(), inputs), REORDERED))
    candidates += [
        Candidate(OFLEX, lambda: bound(oflex_scan(), inputs), REORDERED),
        Candidate(VECTORISED, lambda: reference, REORDERED),
    ]
    return Case(SCAN, str(shape), batch, dtype, inputs, reference, candidates)


class CompiledJob(NamedTuple):
    """Arguments of `measure_compiled`."""

    shape: Shape
    batch: int
    dtype: str
    device: torch.device
    repeats: int
    limit: float


def measure_compiled(
    job: CompiledJob,
    on_message: Callable[[Any], None] | None = None,
    timer: Callable[[torch.device, int, float], Timer] = EventTimer,
) -> Row:
    """torch.compile of the vectorised 1-D scan; for `tfanet.subprocesses`, since it may take too long."""
    inputs = scan_inputs(job.shape, job.batch, DTYPES[job.dtype], job.device)
    reference = bound(_scan_module._forward, inputs)

    def prepare() -> Call:
        return bound(torch.compile(_scan_module._forward, dynamic=False), inputs)

    candidates = [Candidate(COMPILED, prepare, REORDERED)]
    case = Case(SCAN, str(job.shape), job.batch, job.dtype, inputs, reference, candidates)
    (row,) = measure(case, timer(job.device, job.repeats, job.limit))
    return row


def backward_case(shape: Shape, batch: int, dtype: str, device: torch.device, kernels: Kernels) -> Case:
    """The backward pass of the 1-D scan: seven gradients from dy, given what the forward pass keeps."""
    inputs = scan_inputs(shape, batch, DTYPES[dtype], device)
    # The result of our scan is FP32 and so is dy; it has values of the inputs' dtype, which mamba_ssm needs.
    dy = Normal(device)(*inputs[0].shape, dtype=DTYPES[dtype]).float()
    reference = bound(_scan_module._backward, (dy, *inputs))
    tolerance = GRADIENT if dtype == "FP32" else ROUNDED
    candidates = [
        Candidate(TRITON, lambda: bound(kernels.scan_backward, (dy, *inputs)), tolerance, ours=True),
        Candidate(MAMBA, lambda: mamba_backward(dy, inputs), tolerance),
        Candidate(OFLEX, lambda: oflex_backward(dy, inputs), tolerance),
        Candidate(VECTORISED, lambda: reference, tolerance),
    ]
    return Case(BACKWARD, str(shape), batch, dtype, (dy, *inputs), reference, candidates)


def cross_case(shape: Shape, batch: int, dtype: str, device: torch.device, kernels: Kernels) -> Case:
    """The fused 2-D scan, and the same by copies, projection, 1-D scan and merge."""
    inputs = cross_inputs(shape, batch, DTYPES[dtype], device)
    reference = bound(_cross_module._forward, inputs)
    unfused = bound(partial(scan_traversals, kernels.scan), inputs)
    candidates = [
        Candidate(FUSED, lambda: bound(kernels.cross, inputs), REORDERED, ours=True),
        Candidate(UNFUSED, lambda: unfused, REORDERED if dtype == "FP32" else CHAIN),
        Candidate(VECTORISED, lambda: reference, REORDERED),
    ]
    return Case(CROSS, str(shape), batch, dtype, inputs, reference, candidates)


class Attention(NamedTuple):
    """Sizes of one attention of MLAM."""

    queries: int
    keys: int
    heads: int
    head_dim: int


def attention_case(sizes: Attention, batch: int, dtype: str, device: torch.device, kernels: Kernels) -> Case:
    """The linear cross-attention of one scale."""
    normal, heads = Normal(device), (batch, sizes.heads, sizes.head_dim)
    q = normal(*heads, sizes.queries, dtype=DTYPES[dtype])
    k, v = (normal(*heads, sizes.keys, dtype=DTYPES[dtype]) for _ in range(2))
    inputs = (q, k, v, normal(sizes.heads))
    reference = bound(_attention_module._forward, inputs)
    tolerance = REORDERED if dtype == "FP32" else ROUNDED
    candidates = [
        Candidate(TRITON, lambda: bound(kernels.attention, inputs), tolerance, ours=True),
        Candidate(VECTORISED, lambda: reference, tolerance),
    ]
    size = f"{sizes.queries} queries, {sizes.keys} keys"
    return Case(ATTENTION, size, batch, dtype, inputs, reference, candidates)


def model_case(model: TFANet, batch: int, dtype: str, device: torch.device) -> Case:
    """The deployed model in PyTorch, eager, with our kernels and with the vectorised paths."""
    from tfanet_export.deploy import deployment_model

    deployed = deployment_model(model, fp16=dtype == "FP16").to(device)
    inputs = tuple(torch.from_numpy(x).to(device) for x in model_inputs(model.config, batch).values())

    def forward() -> Result:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return deployed(*inputs)

    def with_our_kernels() -> Result:
        with our_kernels():
            return forward()

    def with_vectorised_paths() -> Result:
        with vectorised_paths():
            return forward()

    tolerance = MODEL_TOLERANCE[dtype]
    candidates = [
        Candidate(OUR_KERNELS, lambda: with_our_kernels, tolerance, ours=True),
        Candidate(VECTORISED, lambda: with_vectorised_paths, tolerance),
    ]
    size = f"{model.config.image_size} x {model.config.image_size}"
    return Case(MODEL, size, batch, dtype, inputs, with_vectorised_paths, candidates, counted=False)


def bound(function: Callable[..., Result], inputs: tuple[Tensor, ...]) -> Call:
    return lambda: function(*inputs)
