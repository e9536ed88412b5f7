"""What `scan_gpu.py` times: our kernels, their rivals and the vectorised path on the same inputs.

D is the channels of one direction, K = 4 directions, R = D / 32 the rank of dt, L the tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from gpu_measure import Call, Candidate, Case, EventTimer, NotHere, Result, Row, Timer, measure
from scan_measure import Shape
from torch import Tensor

from tfanet.ops import dispatch, native
from tfanet.ops.traversals import DIRECTIONS, scan_traversals

if TYPE_CHECKING:
    from tfanet.model import TFANet

SCAN, BACKWARD, CROSS, ATTENTION, MODEL = SECTIONS = ("scan", "backward", "cross", "attention", "model")
TRITON, VECTORISED, COMPILED = "ours, Triton", "vectorised, eager", "vectorised, torch.compile"
MAMBA, MAMBA_WIDE, OFLEX = "mamba_ssm", "mamba_ssm, in and out FP32", "VMamba's oflex"
FUSED, UNFUSED = "ours, fused", "ours, unfused chain"
OUR_KERNELS = "our kernels"
SENTENCE = "the small red circle to the left of the large blue square"

DTYPES = {"FP16": torch.float16, "FP32": torch.float32}
WIDE, NARROW, GRADIENT, CHAIN = 1e-4, 4e-3, 1e-3, 2e-2
"""Tolerances: FP32 sums in another order; results rounded to FP16; sums over all tokens in another order; a
step that was rounded to FP16 before a scan that adds it up."""
MODEL_TOLERANCE = {"FP16": 5e-2, "FP32": 1e-3}

_scan_module = importlib.import_module("tfanet.ops.selective_scan")
_cross_module = importlib.import_module("tfanet.ops.cross_selective_scan")
_attention_module = importlib.import_module("tfanet.ops.linear_cross_attention")


class Kernels(NamedTuple):
    """Our kernels, with the signatures of the operations of `tfanet.ops`."""

    scan: Callable[..., Tensor]
    scan_backward: Callable[..., tuple[Tensor, ...]]
    cross: Callable[..., Tensor]
    attention: Callable[..., Tensor]


def triton_kernels() -> Kernels:
    from tfanet.ops import cross_selective_scan_triton, linear_cross_attention_triton, selective_scan_triton

    return Kernels(
        selective_scan_triton.selective_scan_forward,
        selective_scan_triton.selective_scan_backward,
        cross_selective_scan_triton.cross_selective_scan_forward,
        linear_cross_attention_triton.linear_cross_attention_forward,
    )


class Draw:
    """Normal numbers on a device, the same in every run."""

    def __init__(self, device: torch.device) -> None:
        self._rng = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self._rng, device=self._rng.device).to(dtype)


def scan_inputs(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """u, delta, A, B, C, D, delta_bias with the steps and decays of a trained model."""
    draw, rows = Draw(device), DIRECTIONS * shape.channels
    u, delta = (draw(batch, rows, shape.length, dtype=dtype) for _ in range(2))
    B, C = (draw(batch, DIRECTIONS, shape.states, shape.length, dtype=dtype) for _ in range(2))
    A = -torch.arange(1.0, shape.states + 1, device=device).repeat(rows, 1)
    return u, delta, A, B, C, draw(rows), draw(rows) - 4


def cross_inputs(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """x, p, dt_weight, A, D, delta_bias, of the same kind."""
    draw, rows = Draw(device), DIRECTIONS * shape.channels
    x = draw(batch, *shape.map, shape.channels, dtype=dtype)
    p = draw(batch, *shape.map, DIRECTIONS * (shape.rank + 2 * shape.states), dtype=dtype)
    weight = (draw(rows, shape.rank) * shape.rank**-0.5).to(dtype)
    A = -torch.arange(1.0, shape.states + 1, device=device).repeat(rows, 1)
    return x, p, weight, A, draw(rows), draw(rows) - 4


# The scan of one dimension and its rivals.


def scan_case(shape: Shape, batch: int, dtype: str, device: torch.device, kernels: Kernels) -> Case:
    """The scan's forward."""
    inputs = scan_inputs(shape, batch, DTYPES[dtype], device)
    reference = bound(_scan_module._forward, inputs)
    half = dtype != "FP32"
    candidates = [
        Candidate(TRITON, lambda: bound(kernels.scan, inputs), WIDE, ours=True),
        Candidate(MAMBA, lambda: bound(mamba(), inputs), NARROW if half else WIDE),
    ]
    if half:
        candidates.append(Candidate(MAMBA_WIDE, lambda: bound(wide_mamba(), inputs), WIDE))
    candidates += [
        Candidate(OFLEX, lambda: bound(oflex(), inputs), WIDE),
        Candidate(VECTORISED, lambda: reference, WIDE),
    ]
    return Case(SCAN, size_of(shape), batch, dtype, inputs, reference, candidates)


def measure_compiled(
    shape: Shape, batch: int, dtype: str, device: torch.device, repeats: int, limit: float,
    timer: Callable[[torch.device, int, float], Timer] = EventTimer,
) -> Row:  # fmt: skip
    """torch.compile of the vectorised scan, by itself: for a process of its own."""
    inputs = scan_inputs(shape, batch, DTYPES[dtype], device)

    def prepare() -> Call:
        return bound(torch.compile(_scan_module._forward, dynamic=False), inputs)

    reference, candidates = bound(_scan_module._forward, inputs), [Candidate(COMPILED, prepare, WIDE)]
    case = Case(SCAN, size_of(shape), batch, dtype, inputs, reference, candidates)
    (row,) = measure(case, timer(device, repeats, limit))
    return row


def backward_case(shape: Shape, batch: int, dtype: str, device: torch.device, kernels: Kernels) -> Case:
    """The scan's backward: seven gradients from that of its result, what the forward leaves at hand."""
    inputs = scan_inputs(shape, batch, DTYPES[dtype], device)
    # Ours gives FP32, mamba_ssm the inputs' type, and so are the gradients that they get.
    dy = Draw(device)(*inputs[0].shape, dtype=DTYPES[dtype]).float()
    reference = bound(_scan_module._backward, (dy, *inputs))
    tolerance = GRADIENT if dtype == "FP32" else NARROW
    candidates = [
        Candidate(TRITON, lambda: bound(kernels.scan_backward, (dy, *inputs)), tolerance, ours=True),
        Candidate(MAMBA, lambda: mamba_backward(mamba(), dy.to(inputs[0].dtype), inputs), tolerance),
        Candidate(OFLEX, lambda: oflex_backward(dy, inputs), tolerance),
        Candidate(VECTORISED, lambda: reference, tolerance),
    ]
    return Case(BACKWARD, size_of(shape), batch, dtype, (dy, *inputs), reference, candidates)


def mamba() -> Callable[..., Tensor]:
    """mamba_ssm's scan; its result has the dtype of `u`."""
    if find_spec("mamba_ssm") is None:
        raise NotHere("not installed")
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
    ) -> Tensor:
        return interface.selective_scan_fn(u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=True)

    return scan


def wide_mamba() -> Callable[..., Tensor]:
    """mamba_ssm's scan as the operation would use it: FP32 inputs and result."""
    mamba()
    if (scan := dispatch.mamba_scan()) is None:
        raise NotHere("does not load")
    return scan


def mamba_backward(scan: Callable[..., Tensor], dy: Tensor, inputs: tuple[Tensor, ...]) -> Call:
    leaves = [t.detach().requires_grad_() for t in inputs]
    with torch.enable_grad():
        y = scan(*leaves)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def oflex_module() -> Any:
    if find_spec("selective_scan_cuda_oflex") is None:
        raise NotHere("not built")
    return importlib.import_module("selective_scan_cuda_oflex")


def oflex() -> Callable[..., Tensor]:
    """VMamba's scan with FP32 result, as VMamba calls it."""
    module = oflex_module()
    return lambda *inputs: module.fwd(*inputs, True, 1, True)[0]


def oflex_backward(dy: Tensor, inputs: tuple[Tensor, ...]) -> Call:
    module = oflex_module()
    _, states, *_ = module.fwd(*inputs, True, 1, True)
    return lambda: tuple(module.bwd(*inputs, dy, states, True, 1)[:7])


# The scan of two dimensions.


def cross_case(shape: Shape, batch: int, dtype: str, device: torch.device, kernels: Kernels) -> Case:
    """The fused scan against copies, projection, scan and merge."""
    inputs = cross_inputs(shape, batch, DTYPES[dtype], device)
    reference = bound(_cross_module._forward, inputs)
    unfused = bound(partial(scan_traversals, kernels.scan), inputs)
    candidates = [
        Candidate(FUSED, lambda: bound(kernels.cross, inputs), WIDE, ours=True),
        Candidate(UNFUSED, lambda: unfused, WIDE if dtype == "FP32" else CHAIN),
        Candidate(VECTORISED, lambda: reference, WIDE),
    ]
    return Case(CROSS, size_of(shape), batch, dtype, inputs, reference, candidates)


# Linear cross-attention.


class Attention(NamedTuple):
    """Sizes of one attention of MLAM."""

    queries: int
    keys: int
    heads: int
    head_dim: int


def attention_case(sizes: Attention, batch: int, dtype: str, device: torch.device, kernels: Kernels) -> Case:
    """Words that ask an image, or an image that asks words."""
    draw, heads = Draw(device), (batch, sizes.heads, sizes.head_dim)
    q = draw(*heads, sizes.queries, dtype=DTYPES[dtype])
    k, v = (draw(*heads, sizes.keys, dtype=DTYPES[dtype]) for _ in range(2))
    inputs = (q, k, v, draw(sizes.heads))
    reference = bound(_attention_module._forward, inputs)
    candidates = [
        Candidate(
            TRITON, lambda: bound(kernels.attention, inputs), WIDE if dtype == "FP32" else NARROW, ours=True
        ),
        Candidate(VECTORISED, lambda: reference, WIDE if dtype == "FP32" else NARROW),
    ]
    size = f"{sizes.queries} queries, {sizes.keys} keys"
    return Case(ATTENTION, size, batch, dtype, inputs, reference, candidates)


# The whole model.


def model_case(model: TFANet, batch: int, dtype: str, device: torch.device) -> Case:
    """The deployed model in PyTorch, eager, with our kernels and with the vectorised paths."""
    from tfanet.data.preprocess import tokenize
    from tfanet_export.deploy import deployment_model

    deployed = deployment_model(model, fp16=dtype == "FP16").to(device)
    size = model.config.image_size
    pictures = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    tokens = tokenize([SENTENCE] * batch, model.config.token_length)
    inputs = tuple(torch.from_numpy(value).to(device) for value in (pictures, tokens))

    def forward() -> Result:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return deployed(*inputs)

    def with_our_kernels() -> Result:
        with our_kernels():
            return forward()

    def with_vectorised() -> Result:
        with vectorised_paths():
            return forward()

    tolerance = MODEL_TOLERANCE[dtype]
    candidates = [
        Candidate(OUR_KERNELS, lambda: with_our_kernels, tolerance, ours=True),
        Candidate(VECTORISED, lambda: with_vectorised, tolerance),
    ]
    name = f"{size} x {size}"
    return Case(MODEL, name, batch, dtype, inputs, with_vectorised, candidates, counted=False)


@contextmanager
def vectorised_paths() -> Iterator[None]:
    """While the block runs, the operations do without Triton on CUDA, and without compiled code on a CPU."""
    no_triton = patch.object(dispatch, "has_triton", lambda: False)
    with scan_kernel("auto"), no_triton, patch.object(native, "_kernel", lambda _: None):
        yield


@contextmanager
def our_kernels() -> Iterator[None]:
    """While the block runs, the scans on CUDA use our Triton kernels."""
    with scan_kernel("triton"):
        yield


@contextmanager
def scan_kernel(name: str) -> Iterator[None]:
    """While the block runs, the scans on CUDA use `name` (`tfanet.ops.use_scan_kernel`)."""
    before = dispatch.use_scan_kernel(name)
    try:
        yield
    finally:
        dispatch.use_scan_kernel(before)


def bound(function: Callable[..., Result], inputs: tuple[Tensor, ...]) -> Call:
    return lambda: function(*inputs)


def size_of(shape: Shape) -> str:
    return f"{shape.length} x {shape.channels}"
