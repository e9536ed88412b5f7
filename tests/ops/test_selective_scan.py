"""The vectorised selective scan compared with the token-by-token reference."""

from __future__ import annotations

import pytest
import torch

from tfanet.ops import selective_scan
from tfanet.ops.selective_scan import selective_scan_loop

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")

CASES = [
    # batch, K, D, N, L, largest |delta|
    pytest.param(1, 1, 1, 1, 1, 1.0, id="one-token"),
    pytest.param(2, 4, 3, 1, 17, 1.0, id="17-tokens"),
    pytest.param(2, 2, 5, 4, 63, 1.0, id="63-tokens-4-states"),
    pytest.param(1, 4, 8, 1, 225, 1.0, id="stage-4-of-480"),
    pytest.param(1, 1, 3, 16, 500, 1.0, id="500-tokens-16-states"),
    pytest.param(2, 4, 3, 2, 129, 60.0, id="large-delta"),
    pytest.param(1, 2, 2, 1, 65, 1e4, id="extreme-delta"),
]


def make_inputs(batch, groups, dim, states, length, delta_range, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return {
        "u": normal(batch, groups * dim, length).to(dtype),
        "delta": (delta_range * (2 * torch.rand(batch, groups * dim, length, generator=rng) - 1)).to(dtype),
        "A": -torch.exp(normal(groups * dim, states)).to(dtype),
        "B": normal(batch, groups, states, length).to(dtype),
        "C": normal(batch, groups, states, length).to(dtype),
        "D": normal(groups * dim).to(dtype),
        "delta_bias": normal(groups * dim).to(dtype),
    }


@pytest.mark.parametrize(("batch", "groups", "dim", "states", "length", "delta_range"), CASES)
def test_forward_equals_the_reference(batch, groups, dim, states, length, delta_range):
    inputs = make_inputs(batch, groups, dim, states, length, delta_range)
    expected = selective_scan_loop(**{name: x.double() for name, x in inputs.items()})
    actual = selective_scan(**inputs)
    assert actual.dtype == torch.float32
    scale = expected.abs().max().item()
    assert (actual.double() - expected).abs().max().item() <= 2e-6 * max(scale, 1.0)


@pytest.mark.parametrize(("batch", "groups", "dim", "states", "length", "delta_range"), CASES)
def test_gradients_equal_the_reference(batch, groups, dim, states, length, delta_range):
    inputs = {
        name: x.requires_grad_()
        for name, x in make_inputs(batch, groups, dim, states, length, delta_range, torch.float64).items()
    }
    weight = torch.randn(inputs["u"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((selective_scan_loop(**inputs) * weight).sum(), list(inputs.values()))
    actual = torch.autograd.grad((selective_scan(**inputs) * weight).sum(), list(inputs.values()))
    for name, right, ours in zip(NAMES, expected, actual, strict=True):
        torch.testing.assert_close(
            ours, right, rtol=1e-9, atol=1e-9 * right.abs().max().item() + 1e-12, msg=name
        )


@pytest.mark.parametrize("shift", [-25.0, -17.0, -12.0, -7.0, 10.0, 15.0, 20.0])
def test_fp32_precision_for_every_range_of_delta(shift):
    """Output and all gradients in FP32 compared with the loop in FP64, each relative to its largest value."""
    inputs = make_inputs(2, 2, 3, 2, 70, 1.0)
    inputs["delta"] = inputs["delta"] + shift
    inputs["D"] = torch.zeros_like(inputs["D"])  # the skip would hide a small scan
    weight = torch.randn(inputs["u"].shape, generator=torch.Generator().manual_seed(1))
    results = []
    for operation, dtype in ((selective_scan_loop, torch.float64), (selective_scan, torch.float32)):
        leaves = {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}
        y = operation(**leaves)
        results.append(
            [y.detach(), *torch.autograd.grad((y * weight.to(dtype)).sum(), list(leaves.values()))]
        )
    for name, right, ours in zip(("y", *NAMES), *results, strict=True):
        assert (ours.double() - right).abs().max() <= 2e-5 * right.abs().max(), name


def test_gradcheck():
    inputs = make_inputs(2, 2, 2, 2, 7, 1.0, torch.float64)
    assert torch.autograd.gradcheck(selective_scan, tuple(inputs[name].requires_grad_() for name in NAMES))


def test_extreme_delta_resets_the_state():
    """With delta = 1e4 every decay is 0: each output depends on its own token alone, and nothing is NaN."""
    inputs = make_inputs(1, 1, 2, 1, 100, 1.0)
    inputs["delta"] = torch.full_like(inputs["delta"], 1e4)
    changed = dict(inputs, u=inputs["u"].clone())
    changed["u"][..., :50] += 1.0
    y, y_changed = selective_scan(**inputs), selective_scan(**changed)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y[..., 50:], y_changed[..., 50:], rtol=0, atol=0)
    assert (y[..., :50] != y_changed[..., :50]).all()


def test_full_length_of_the_first_stage():
    inputs = make_inputs(1, 4, 1, 1, 14400, 3.0)
    expected = selective_scan_loop(**{name: x.double() for name, x in inputs.items()})
    error = (selective_scan(**inputs).double() - expected).abs().max().item()
    assert error <= 5e-6 * expected.abs().max().item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_tensors_keep_an_fp32_state(dtype):
    """4,096 tokens that each add 2^-12 to a state near 1: a half-precision state would stop growing."""
    length = 4096
    ones = torch.ones(1, 1, length, dtype=dtype)
    inputs = {
        "u": ones * 2**-12, "delta": ones * 20.0, "A": torch.full((1, 1), -1e-9),
        "B": torch.full((1, 1, 1, length), 1 / 20, dtype=dtype),
        "C": torch.ones(1, 1, 1, length, dtype=dtype), "D": torch.zeros(1), "delta_bias": torch.zeros(1),
    }  # fmt: skip
    y = selective_scan(**inputs)
    assert y.dtype == torch.float32
    assert y[0, 0, -1].item() == pytest.approx(1.0, rel=0.01)


def test_states_beyond_the_range_of_fp16():
    """4,096 tokens that each add 500 without decay: 2,048,000, which is infinite in FP16."""
    length = 4096
    ones = torch.ones(1, 1, length, dtype=torch.float16)
    B = torch.ones(1, 1, 1, length, dtype=torch.float16)
    y = selective_scan(25 * ones, 20 * ones, torch.full((1, 1), -1e-9), B, B, torch.zeros(1), torch.zeros(1))
    assert y[0, 0, -1].item() == pytest.approx(500 * length, rel=1e-3)


def test_non_contiguous_inputs():
    inputs = make_inputs(2, 2, 3, 2, 21, 1.0)
    strided = {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in inputs.items()}
    assert not strided["u"].is_contiguous()
    torch.testing.assert_close(selective_scan(**strided), selective_scan(**inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("delta", (1, 4, 8), r"delta must be \[1, 4, 9\]"),
        ("A", (3, 2), r"A must be \[4, 2\]"),
        ("C", (1, 1, 2, 9), r"C must be \[1, 2, 2, 9\]"),
        ("B", (1, 3, 2, 9), "4 channels cannot be split into 3 groups"),
        ("u", (4, 9), r"u must be \[batch, K\*D, L\]"),
    ],
)
def test_invalid_shapes_raise_with_the_name(name, shape, message):
    inputs = make_inputs(1, 2, 2, 2, 9, 1.0)
    with pytest.raises(ValueError, match=message):
        selective_scan(**dict(inputs, **{name: torch.zeros(shape)}))


def test_operator_registration():
    inputs = make_inputs(1, 2, 2, 2, 9, 1.0)
    torch.library.opcheck(selective_scan, tuple(inputs[name].requires_grad_() for name in NAMES))
