"""The Triton kernels of the linear cross-attention compared with the loop over positions."""

from __future__ import annotations

import importlib

import pytest
import torch

from tfanet.ops.linear_cross_attention import linear_cross_attention_loop

triton = pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

NAMES = ("q", "k", "v", "gamma")

CASES = [
    # batch, h, d, M, N, keys a split, positions a block
    pytest.param(1, 1, 16, 1, 2, 1024, 128, id="one-query-two-keys"),
    pytest.param(2, 3, 16, 17, 225, 1024, 128, id="words-query-an-image"),
    pytest.param(2, 3, 16, 225, 17, 1024, 32, id="an-image-queries-words"),
    pytest.param(1, 2, 16, 17, 225, 64, 16, id="split-keys"),
    pytest.param(1, 2, 16, 150, 128, 64, 32, id="split-queries-and-whole-blocks"),
    pytest.param(1, 2, 5, 33, 40, 32, 16, id="5-channels-a-head"),
    pytest.param(1, 1, 40, 20, 35, 1024, 16, id="40-channels-a-head"),
]


@pytest.fixture
def kernels(device):
    from tfanet.ops import linear_cross_attention_triton

    return linear_cross_attention_triton


def make_inputs(batch, heads, d, queries, keys, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, d, n) for n in (queries, keys, keys)]
    q, k, v = (torch.randn(shape, generator=rng).to(dtype) for shape in shapes)
    return {"q": q, "k": k, "v": v, "gamma": 0.5 + torch.rand(heads, generator=rng)}


def oracle(inputs, weight):
    leaves = {name: x.double().requires_grad_() for name, x in inputs.items()}
    out = linear_cross_attention_loop(**leaves)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), list(leaves.values()))]


def run(kernels, inputs, weight, device):
    on_device = [x.to(device) for x in inputs.values()]
    actual = [kernels.linear_cross_attention_forward(*on_device)]
    actual += kernels.linear_cross_attention_backward(weight.to(device), *on_device)
    return [x.cpu() for x in actual]


def weight_of(inputs):
    return torch.randn(inputs["q"].shape, generator=torch.Generator().manual_seed(1))


def assert_close(actual, expected, tolerance):
    """Largest difference relative to the largest value, tensor by tensor; NaN never passes."""
    for name, ours, right in zip(("out", *NAMES), actual, expected, strict=True):
        limit = max(tolerance, torch.finfo(ours.dtype).eps) * right.abs().max()
        assert (ours.double() - right).abs().max() <= limit, name


@pytest.mark.parametrize(("batch", "heads", "d", "queries", "keys", "split", "block"), CASES)
def test_output_and_gradients_equal_the_reference(
    batch, heads, d, queries, keys, split, block, kernels, device, monkeypatch
):
    monkeypatch.setattr(kernels, "SPLIT", split)
    monkeypatch.setattr(kernels, "BLOCK", block)
    inputs = make_inputs(batch, heads, d, queries, keys)
    weight = weight_of(inputs)
    assert_close(run(kernels, inputs, weight, device), oracle(inputs, weight), 5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("split", [32, 1024])
def test_half_tensors_are_computed_in_fp32(dtype, split, kernels, device, monkeypatch):
    monkeypatch.setattr(kernels, "SPLIT", split)
    monkeypatch.setattr(kernels, "BLOCK", 32)
    inputs = make_inputs(1, 2, 16, 20, 90, dtype)
    weight = weight_of(inputs).to(dtype)
    actual = run(kernels, inputs, weight, device)
    assert [x.dtype for x in actual] == [dtype] * 4 + [torch.float32]
    assert_close(actual, oracle(inputs, weight), 5e-6)


def test_sums_beyond_the_range_of_fp16(kernels, device, monkeypatch):
    """300 keys of 40 x 40 sum to 480,000, which is infinite in FP16."""
    monkeypatch.setattr(kernels, "SPLIT", 128)
    inputs = make_inputs(1, 1, 16, 5, 300, torch.float16)
    inputs |= {name: torch.full((1, 1, 16, 300), 40.0, dtype=torch.float16) for name in ("k", "v")}
    weight = weight_of(inputs).half()
    assert_close(
        run(kernels, inputs, weight, device)[:1] + oracle(inputs, weight)[1:], oracle(inputs, weight), 5e-6
    )


def test_results_are_deterministic(kernels, device, monkeypatch):
    monkeypatch.setattr(kernels, "SPLIT", 32)
    monkeypatch.setattr(kernels, "BLOCK", 32)
    inputs = make_inputs(1, 2, 16, 20, 90)
    weight = weight_of(inputs)
    first, second = (run(kernels, inputs, weight, device) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_non_contiguous_inputs(kernels, device):
    inputs = make_inputs(2, 2, 16, 9, 30)
    strided = {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in inputs.items()}
    assert not strided["q"].is_contiguous()
    weight = weight_of(inputs)
    assert_close(run(kernels, strided, weight.mT.contiguous().mT, device), oracle(inputs, weight), 5e-6)


def test_cuda_tensors_reach_the_kernels(kernels, device, monkeypatch):
    """The functions that PyTorch calls for CUDA tensors; without a GPU, with the interpreter's tensors."""
    module = importlib.import_module("tfanet.ops.linear_cross_attention")
    calls = []
    for name in ("linear_cross_attention_forward", "linear_cross_attention_backward"):
        real = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *inputs, real=real: calls.append(real.__name__) or real(*inputs)
        )
    inputs = make_inputs(1, 2, 16, 9, 30)
    weight = weight_of(inputs)
    on_device = [x.to(device) for x in inputs.values()]
    actual = [module._on_gpu(*on_device), *module._backward_on_gpu(weight.to(device), *on_device)]
    assert calls == ["linear_cross_attention_forward", "linear_cross_attention_backward"]
    assert_close([x.cpu() for x in actual], oracle(inputs, weight), 5e-6)
    module._on_gpu(*(x.double() for x in on_device))
    module._on_gpu(*(x.to(device) for x in make_inputs(1, 1, module.MAX_HEAD + 1, 2, 2).values()))
    assert len(calls) == 2
    if device == "cuda":
        assert torch.equal(module.linear_cross_attention(*on_device), actual[0])
        assert len(calls) == 3
