"""The fused 2-D scan compared with four traversals of the token-by-token reference."""

from __future__ import annotations

import pytest
import torch

from tfanet.ops import cross_selective_scan, native, recurrence
from tfanet.ops.cross_selective_scan import cross_merge, cross_scan, cross_selective_scan_loop

NAMES = ("x", "p", "dt_weight", "A", "D", "delta_bias")

CASES = [
    # batch, H, W, D, R, N, shift of delta
    pytest.param(1, 1, 1, 1, 1, 1, 0.0, id="one-pixel"),
    pytest.param(2, 1, 17, 3, 2, 1, 0.0, id="one-row"),
    pytest.param(2, 13, 1, 3, 2, 2, 0.0, id="one-column"),
    pytest.param(2, 5, 9, 4, 3, 4, 0.0, id="wide-4-states"),
    pytest.param(1, 15, 15, 2, 1, 1, 0.0, id="stage-4-of-480"),
    pytest.param(1, 33, 16, 3, 2, 16, 0.0, id="tall-16-states"),
    pytest.param(1, 8, 7, 3, 2, 1, -25.0, id="tiny-steps"),
    pytest.param(1, 8, 7, 3, 2, 2, 1e4, id="extreme-steps"),
]


def make_inputs(batch, height, width, dim, rank, states, shift=0.0, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    return {
        "x": normal(batch, height, width, dim),
        "p": normal(batch, height, width, 4 * (rank + 2 * states)),
        "dt_weight": normal(4 * dim, rank),
        "A": -torch.exp(normal(4 * dim, states)),
        "D": normal(4 * dim),
        "delta_bias": normal(4 * dim) + shift,
    }


@pytest.fixture
def vectorised(monkeypatch):
    """Without the compiled kernels, which have other tests."""
    for function in ("supported", "scans"):
        monkeypatch.setattr(native, function, lambda x, states: False)


@pytest.mark.parametrize(("batch", "height", "width", "dim", "rank", "states", "shift"), CASES)
def test_forward_equals_the_reference(vectorised, batch, height, width, dim, rank, states, shift):
    inputs = make_inputs(batch, height, width, dim, rank, states, shift)
    expected = cross_selective_scan_loop(**{name: x.double() for name, x in inputs.items()})
    actual = cross_selective_scan(**inputs)
    assert actual.dtype == torch.float32
    assert actual.shape == inputs["x"].shape
    assert (actual.double() - expected).abs().max() <= 2e-6 * max(expected.abs().max().item(), 1.0)


@pytest.mark.parametrize(("batch", "height", "width", "dim", "rank", "states", "shift"), CASES)
def test_gradients_equal_the_reference(batch, height, width, dim, rank, states, shift):
    inputs = make_inputs(batch, height, width, dim, rank, states, shift, torch.float64)
    leaves = [x.requires_grad_() for x in inputs.values()]
    weight = torch.randn(inputs["x"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((cross_selective_scan_loop(*leaves) * weight).sum(), leaves)
    actual = torch.autograd.grad((cross_selective_scan(*leaves) * weight).sum(), leaves)
    for name, right, ours in zip(NAMES, expected, actual, strict=True):
        scale = right.abs().max().item()
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9 * scale + 1e-12, msg=name)


def test_blocks_of_channels_do_not_change_the_result(vectorised, monkeypatch):
    inputs = make_inputs(2, 6, 5, 40, 2, 1)
    expected = cross_selective_scan(**inputs)
    monkeypatch.setattr(recurrence, "BLOCK", 1)  # blocks of 16, 16 and 8 channels
    torch.testing.assert_close(cross_selective_scan(**inputs), expected, rtol=1e-6, atol=1e-6)


def test_gradcheck():
    inputs = make_inputs(2, 3, 2, 2, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(cross_selective_scan, tuple(x.requires_grad_() for x in inputs.values()))


def test_operator_registration():
    inputs = make_inputs(1, 3, 4, 2, 1, 1)
    torch.library.opcheck(cross_selective_scan, tuple(x.requires_grad_() for x in inputs.values()))


def test_inputs_are_not_modified():
    inputs = make_inputs(1, 1, 1, 1, 1, 1)
    before = {name: x.clone() for name, x in inputs.items()}
    leaves = [x.requires_grad_() for x in inputs.values()]
    cross_selective_scan(*leaves).sum().backward()
    assert all(torch.equal(inputs[name], x) for name, x in before.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_tensors_are_computed_in_fp32(dtype):
    inputs = make_inputs(1, 7, 6, 4, 2, 1)
    half = {name: x.to(dtype) for name, x in inputs.items()}
    y = cross_selective_scan(**half)
    expected = cross_selective_scan(**{name: x.float() for name, x in half.items()})
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_autocast_does_not_change_the_result():
    inputs = make_inputs(1, 7, 6, 4, 2, 1)
    expected = cross_selective_scan(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(cross_selective_scan(**inputs), expected, rtol=0, atol=0)


def test_traversals_of_a_small_map():
    x = torch.arange(6.0).view(1, 2, 3, 1)  # 0 1 2 / 3 4 5
    rows, columns, reversed_rows, reversed_columns = cross_scan(x)[0, :, 0].tolist()
    assert rows == [0, 1, 2, 3, 4, 5]
    assert columns == [0, 3, 1, 4, 2, 5]
    assert reversed_rows == rows[::-1]
    assert reversed_columns == columns[::-1]
    torch.testing.assert_close(cross_merge(cross_scan(x), 2, 3), 4 * x)


def test_non_contiguous_inputs():
    inputs = make_inputs(2, 4, 5, 3, 2, 1)
    strided = dict(inputs, x=inputs["x"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    assert not strided["x"].is_contiguous()
    torch.testing.assert_close(cross_selective_scan(**strided), cross_selective_scan(**inputs))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("p", (1, 3, 4, 7), r"p must be \[1, 3, 4, 12\]"),
        ("A", (4, 1), r"A must be \[8, 1\]"),
        ("D", (2,), r"D must be \[8\]"),
        ("x", (3, 4, 2), r"x must be \[batch, H, W, D\]"),
    ],
)
def test_invalid_shapes_raise_with_the_name(name, shape, message):
    inputs = make_inputs(1, 3, 4, 2, 1, 1)
    with pytest.raises(ValueError, match=message):
        cross_selective_scan(**(inputs | {name: torch.zeros(shape)}))
