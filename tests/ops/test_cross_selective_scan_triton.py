"""The Triton kernels of the 2-D scan compared with four traversals of the token-by-token reference."""

from __future__ import annotations

import importlib

import pytest
import torch

from tfanet.ops.cross_selective_scan import cross_selective_scan_loop
from tfanet.ops.traversals import scan_traversals, traversal_gradients

triton = pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

NAMES = ("x", "p", "dt_weight", "A", "D", "delta_bias")

CASES = [
    # batch, H, W, D, R, N, shift of delta
    pytest.param(1, 1, 1, 1, 1, 1, 0.0, id="one-pixel"),
    pytest.param(2, 1, 17, 3, 2, 1, 0.0, id="one-row"),
    pytest.param(1, 130, 1, 3, 2, 2, 0.0, id="one-column"),
    pytest.param(2, 5, 9, 4, 3, 3, 0.0, id="wide-3-states"),
    pytest.param(1, 15, 15, 2, 1, 1, 0.0, id="stage-4-of-480"),
    pytest.param(1, 16, 8, 40, 20, 1, 0.0, id="whole-chunks-40-channels"),
    pytest.param(1, 9, 4, 3, 2, 16, 0.0, id="16-states"),
    pytest.param(1, 8, 7, 3, 70, 1, -25.0, id="tiny-steps-of-70-ranks"),
    pytest.param(1, 8, 7, 3, 2, 1, 1e4, id="extreme-steps"),
]


@pytest.fixture
def kernels(device):
    from tfanet.ops import cross_selective_scan_triton

    return cross_selective_scan_triton


def make_inputs(batch, height, width, dim, rank, states, shift=0.0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=rng)

    return {
        "x": normal(batch, height, width, dim).to(dtype),
        "p": normal(batch, height, width, 4 * (rank + 2 * states)).to(dtype),
        "dt_weight": (normal(4 * dim, rank) * rank**-0.5).to(dtype),
        "A": -torch.exp(normal(4 * dim, states)),
        "D": normal(4 * dim),
        "delta_bias": normal(4 * dim) + shift,
    }


def oracle(inputs, weight):
    leaves = {name: x.double().requires_grad_() for name, x in inputs.items()}
    y = cross_selective_scan_loop(**leaves)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), list(leaves.values()))]


def run(kernels, inputs, weight, device):
    from tfanet.ops.selective_scan_triton import selective_scan_backward

    on_device = [x.to(device) for x in inputs.values()]
    actual = [kernels.cross_selective_scan_forward(*on_device)]
    actual += traversal_gradients(selective_scan_backward, weight.to(device), *on_device)
    return [x.cpu() for x in actual]


def weight_of(inputs):
    return torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(1))


def assert_close(actual, expected, tolerance):
    """Largest difference relative to the largest value, tensor by tensor; NaN never passes."""
    for name, ours, right in zip(("y", *NAMES)[: len(expected)], actual, expected, strict=True):
        limit = max(tolerance, torch.finfo(ours.dtype).eps) * right.abs().max()
        assert (ours.double() - right).abs().max() <= limit, name


@pytest.mark.parametrize(("batch", "height", "width", "dim", "rank", "states", "shift"), CASES)
def test_output_and_gradients_equal_the_reference(
    batch, height, width, dim, rank, states, shift, kernels, device
):
    inputs = make_inputs(batch, height, width, dim, rank, states, shift)
    weight = weight_of(inputs)
    assert_close(run(kernels, inputs, weight, device), oracle(inputs, weight), 1e-5)


def test_states_are_carried_between_blocks_of_chunks(kernels, device, monkeypatch):
    """As for maps of more than 2,048 pixels."""
    monkeypatch.setattr(kernels, "start_block", lambda pixels: 2)
    inputs = make_inputs(1, 13, 20, 3, 2, 2, -3.0)
    weight = weight_of(inputs)
    assert_close(run(kernels, inputs, weight, device), oracle(inputs, weight), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_tensors_are_computed_in_fp32(dtype, kernels, device):
    inputs = make_inputs(1, 7, 9, 20, 3, 1, 0.0, dtype)
    weight = weight_of(inputs)
    actual, expected = run(kernels, inputs, weight, device), oracle(inputs, weight)
    assert [x.dtype for x in actual] == [torch.float32, dtype, dtype, dtype, *[torch.float32] * 3]
    assert_close(actual, expected, 1e-5)


def test_fp32_weights_with_a_half_map(kernels, device):
    """Under autocast parameters are FP32 and activations half."""
    inputs = make_inputs(1, 7, 9, 20, 3, 1, 0.0, torch.float16)
    inputs["dt_weight"] = inputs["dt_weight"].float() * 1.001
    weight = weight_of(inputs)
    assert_close(run(kernels, inputs, weight, device), oracle(inputs, weight), 1e-5)


def test_results_are_deterministic(kernels, device):
    inputs = make_inputs(1, 6, 7, 5, 2, 1)
    weight = weight_of(inputs)
    first, second = (run(kernels, inputs, weight, device) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_non_contiguous_inputs(kernels, device):
    inputs = make_inputs(2, 4, 5, 3, 2, 1)
    strided = {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in inputs.items()}
    assert not strided["x"].is_contiguous()
    weight = weight_of(inputs)
    assert_close(run(kernels, strided, weight, device), oracle(inputs, weight), 1e-5)


def test_traversals_of_the_1d_kernel_give_the_same(kernels, device):
    from tfanet.ops.selective_scan_triton import selective_scan_forward

    inputs = [x.to(device) for x in make_inputs(1, 3, 4, 2, 1, 1).values()]
    expected = kernels.cross_selective_scan_forward(*inputs).double()
    assert_close([scan_traversals(selective_scan_forward, *inputs)], [expected], 1e-5)


def test_cuda_tensors_reach_the_kernels(kernels, device, monkeypatch):
    """The functions that PyTorch calls for CUDA tensors; without a GPU, with the interpreter's tensors."""
    from tfanet.ops import selective_scan_triton

    module = importlib.import_module("tfanet.ops.cross_selective_scan")
    calls = []

    def record(owner, name, label):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *inputs: calls.append(label) or real(*inputs))

    record(kernels, "cross_selective_scan_forward", "fused")
    record(selective_scan_triton, "selective_scan_backward", "gradients")
    inputs = make_inputs(1, 3, 4, 2, 1, 1, 0.0, torch.float16)
    weight = weight_of(inputs)
    on_device = [x.to(device) for x in inputs.values()]
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = [module._on_gpu(*on_device), *module._backward_on_gpu(weight.to(device), *on_device)]
    assert calls == ["fused", "gradients"]
    assert_close([x.cpu() for x in actual], oracle(inputs, weight), 1e-5)
    module._on_gpu(*(x.double() for x in on_device))
    monkeypatch.setattr(kernels, "MAX_ELEMENTS", 10)
    assert_close([module._on_gpu(*on_device).cpu(), *actual[1:]], oracle(inputs, weight), 1e-5)
    assert calls == ["fused", "gradients"]
