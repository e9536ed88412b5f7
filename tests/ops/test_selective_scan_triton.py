"""The Triton kernels of the selective scan compared with the token-by-token reference."""

from __future__ import annotations

import pytest
import torch

from tfanet.ops import selective_scan
from tfanet.ops.selective_scan import selective_scan_loop

triton = pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
SMALL = (2, 32, 1, 1)
"""Channels, tokens, warps and stages of a program: several programs and chunks even in small cases."""

CASES = [
    # batch, K, D, N, L, largest |delta|, tile
    pytest.param(1, 1, 1, 1, 1, 1.0, None, id="one-token"),
    pytest.param(2, 4, 3, 1, 17, 1.0, SMALL, id="17-tokens-4-groups"),
    pytest.param(2, 1, 5, 2, 63, 1.0, SMALL, id="63-tokens-2-states"),
    pytest.param(1, 4, 3, 1, 225, 1.0, None, id="stage-4-of-480"),
    pytest.param(1, 1, 3, 16, 500, 1.0, (4, 256, 1, 1), id="500-tokens-16-states"),
    pytest.param(1, 2, 3, 3, 64, 1.0, SMALL, id="whole-chunks-3-states"),
    pytest.param(2, 2, 3, 1, 129, 60.0, SMALL, id="large-delta"),
    pytest.param(1, 2, 2, 1, 65, 1e4, SMALL, id="extreme-delta"),
]


def make_inputs(batch, groups, dim, states, length, delta_range, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=rng)

    return {
        "u": normal(batch, groups * dim, length).to(dtype),
        "delta": (delta_range * (2 * torch.rand(batch, groups * dim, length, generator=rng) - 1)).to(dtype),
        "A": -torch.exp(normal(groups * dim, states)),
        "B": normal(batch, groups, states, length).to(dtype),
        "C": normal(batch, groups, states, length).to(dtype),
        "D": normal(groups * dim),
        "delta_bias": normal(groups * dim),
    }


def oracle(inputs, weight=None):
    """Output, and gradients of <output, weight>, in FP64."""
    leaves = {name: x.double().requires_grad_(weight is not None) for name, x in inputs.items()}
    y = selective_scan_loop(**leaves)
    gradients = [] if weight is None else torch.autograd.grad((y * weight).sum(), list(leaves.values()))
    return [y.detach(), *gradients]


def run(inputs, device, *, weight=None, tile=None):
    """The kernels' output and, with `weight`, gradients, on the CPU."""
    from tfanet.ops import selective_scan_triton as kernels

    tile = tile and kernels.Tile(*tile)
    on_device = [x.to(device) for x in inputs.values()]
    results = [kernels.selective_scan_forward(*on_device, tile=tile)]
    if weight is not None:
        results += kernels.selective_scan_backward(weight.to(device), *on_device, tile=tile)
    return [x.cpu() for x in results]


def assert_close(actual, expected, tolerance):
    """Largest difference relative to the largest value, tensor by tensor; NaN never passes."""
    for name, ours, right in zip(("y", *NAMES), actual, expected, strict=False):
        assert (ours.double() - right).abs().max() <= tolerance * right.abs().max(), name


@pytest.mark.parametrize(("batch", "groups", "dim", "states", "length", "delta_range", "tile"), CASES)
def test_output_and_gradients_equal_the_reference(
    batch, groups, dim, states, length, delta_range, tile, device
):
    inputs = make_inputs(batch, groups, dim, states, length, delta_range)
    weight = torch.randn(inputs["u"].shape, generator=torch.Generator().manual_seed(1))
    actual, expected = run(inputs, device, weight=weight, tile=tile), oracle(inputs, weight)
    assert all(x.dtype == torch.float32 for x in actual)
    # With one token there is no state before it: dA is 0, so there is no scale to compare with.
    if length == 1:
        assert not actual.pop(3).any()
        assert not expected.pop(3).any()
    assert_close(actual, expected, 5e-6)


@pytest.mark.parametrize("shift", [-25.0, -12.0, -7.0, 10.0, 20.0])
def test_precision_for_every_range_of_delta(shift, device):
    inputs = make_inputs(1, 2, 3, 2, 70, 1.0)
    inputs["delta"] = inputs["delta"] + shift
    inputs["D"] = torch.zeros_like(inputs["D"])  # the skip would hide a small scan
    weight = torch.randn(inputs["u"].shape, generator=torch.Generator().manual_seed(1))
    assert_close(run(inputs, device, weight=weight, tile=SMALL), oracle(inputs, weight), 5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_tensors_are_computed_in_fp32(dtype, device):
    inputs = make_inputs(2, 2, 3, 1, 100, 3.0, dtype)
    weight = torch.randn(inputs["u"].shape, generator=torch.Generator().manual_seed(1))
    actual, expected = run(inputs, device, weight=weight, tile=SMALL), oracle(inputs, weight)
    assert actual[0].dtype == torch.float32
    assert_close(actual[:1], expected, 5e-6)
    for name, ours, right in zip(NAMES, actual[1:], expected[1:], strict=True):
        assert ours.dtype == inputs[name].dtype
        tolerance = max(torch.finfo(ours.dtype).eps, 5e-6)
        assert (ours.double() - right).abs().max() <= tolerance * right.abs().max(), name


def test_full_length_of_the_first_stage(device):
    inputs = make_inputs(1, 4, 1, 1, 14400, 3.0)
    expected = [selective_scan(**{name: x.double() for name, x in inputs.items()})]
    assert_close(run(inputs, device), expected, 5e-6)


def test_states_beyond_the_range_of_fp16(device):
    """2,048 tokens that each add 500 without decay: 1,024,000, which is infinite in FP16."""
    ones = torch.ones(1, 1, 2048, dtype=torch.float16)
    inputs = dict(
        zip(NAMES, (25 * ones, 20 * ones, torch.full((1, 1), -1e-9), ones[None], ones[None]), strict=False)
    )
    inputs |= {"D": torch.zeros(1), "delta_bias": torch.zeros(1)}
    assert run(inputs, device)[0][0, 0, -1].item() == pytest.approx(500 * 2048, rel=1e-5)


def test_non_contiguous_inputs(device):
    inputs = make_inputs(2, 2, 3, 2, 21, 1.0)
    strided = {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in inputs.items()}
    assert not strided["u"].is_contiguous()
    weight = torch.ones(2, 21, 6).mT
    assert_close(run(strided, device, weight=weight), oracle(inputs, weight), 5e-6)


def test_results_do_not_depend_on_the_tile_or_the_run(device):
    inputs = make_inputs(1, 2, 5, 2, 90, 1.0)
    weight = torch.randn(inputs["u"].shape, generator=torch.Generator().manual_seed(1))
    first, second, other = (
        run(inputs, device, weight=weight, tile=tile) for tile in (SMALL, SMALL, (1, 64, 2, 1))
    )
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert_close(other, first, 5e-6)


def test_cuda_tensors_reach_the_kernels(device, monkeypatch):
    """The functions that PyTorch calls for CUDA tensors; without a GPU, with the interpreter's tensors."""
    import importlib

    from tfanet.ops import selective_scan_triton as kernels

    module = importlib.import_module("tfanet.ops.selective_scan")
    calls = []
    for name in ("selective_scan_forward", "selective_scan_backward"):
        real = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *inputs, real=real: calls.append(real.__name__) or real(*inputs)
        )
    inputs = [x.to(device) for x in make_inputs(1, 2, 2, 1, 9, 1.0).values()]
    expected = oracle(dict(zip(NAMES, (x.cpu() for x in inputs), strict=True)), torch.ones(1, 4, 9))
    actual = [module._on_gpu(*inputs), *module._backward_on_gpu(torch.ones(1, 4, 9, device=device), *inputs)]
    assert calls == ["selective_scan_forward", "selective_scan_backward"]
    assert_close([x.cpu() for x in actual], expected, 5e-6)
    assert module._on_gpu(*(x.double() for x in inputs)).dtype == torch.float64
    assert len(calls) == 2
    if device == "cuda":
        assert torch.equal(selective_scan(*inputs), actual[0])
        assert len(calls) == 3


def test_composition_is_associative(device):
    """An associative scan may group its tokens in any way."""
    from tfanet.ops import selective_scan_triton as kernels

    rng = torch.Generator().manual_seed(0)
    for function, width in ((kernels.compose, 2), (kernels.compose_with_previous, 4)):
        compose = function.fn
        x, y, z = (list(torch.rand(width, 100, generator=rng, dtype=torch.float64)) for _ in range(3))
        left, right = compose(*compose(*x, *y), *z), compose(*x, *compose(*y, *z))
        torch.testing.assert_close(torch.stack(left), torch.stack(right), rtol=1e-12, atol=1e-12)


def test_polynomial_of_the_logarithm(device):
    from tfanet.ops import selective_scan_triton as kernels

    z = torch.cat([torch.linspace(0, 1, 10001), torch.logspace(-30, 0, 10001)])
    exact = torch.log1p(z.double())
    assert ((kernels.log1p_unit.fn(z) - exact).abs() <= 5e-7 * exact).all()
