"""X-Norm linear cross-attention compared with the loop of equations 8 and 9."""

from __future__ import annotations

import pytest
import torch

from tfanet.ops import linear_cross_attention
from tfanet.ops.linear_cross_attention import linear_cross_attention_loop

CASES = [
    # batch, heads, d, M, N
    pytest.param(1, 1, 1, 1, 1, id="smallest"),
    pytest.param(2, 2, 5, 17, 63, id="words-query-pixels"),
    pytest.param(1, 3, 8, 225, 17, id="pixels-query-words"),
]


def make_inputs(batch, heads, dim, queries, keys, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    shapes = {
        "q": (batch, heads, dim, queries),
        "k": (batch, heads, dim, keys),
        "v": (batch, heads, dim, keys),
    }
    inputs = {
        name: torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }
    return inputs | {"gamma": torch.randn(heads, generator=rng, dtype=torch.float64).to(dtype)}


@pytest.mark.parametrize(("batch", "heads", "dim", "queries", "keys"), CASES)
def test_forward_equals_the_reference(batch, heads, dim, queries, keys):
    inputs = make_inputs(batch, heads, dim, queries, keys)
    expected = linear_cross_attention_loop(**{name: x.double() for name, x in inputs.items()})
    torch.testing.assert_close(linear_cross_attention(**inputs).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("batch", "heads", "dim", "queries", "keys"), CASES)
def test_gradients_equal_the_reference(batch, heads, dim, queries, keys):
    inputs = {
        n: x.requires_grad_() for n, x in make_inputs(batch, heads, dim, queries, keys, torch.float64).items()
    }
    weight = torch.randn(inputs["q"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(
        (linear_cross_attention_loop(**inputs) * weight).sum(), list(inputs.values())
    )
    actual = torch.autograd.grad((linear_cross_attention(**inputs) * weight).sum(), list(inputs.values()))
    for name, right, ours in zip(inputs, expected, actual, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9, msg=name)


def test_gradcheck():
    inputs = make_inputs(1, 2, 3, 4, 5, torch.float64)
    assert torch.autograd.gradcheck(
        linear_cross_attention, tuple(x.requires_grad_() for x in inputs.values())
    )


def test_sums_beyond_the_range_of_fp16():
    """K^T V over 14,400 pixels of ones times 8 is 921,600: FP16 sums would be inf and the output NaN."""
    ones = torch.ones(1, 1, 2, 14400, dtype=torch.float16)
    out = linear_cross_attention(ones[..., :3], 8 * ones, 8 * ones, torch.ones(1))
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), torch.ones(1, 1, 2, 3), rtol=1e-3, atol=1e-3)


def test_zero_keys_are_ignored_and_zero_queries_stay_zero():
    inputs = make_inputs(1, 2, 4, 6, 5)
    padded = {name: torch.nn.functional.pad(inputs[name], (0, 3)) for name in ("k", "v")}
    same = linear_cross_attention(inputs["q"], padded["k"], padded["v"], inputs["gamma"])
    torch.testing.assert_close(same, linear_cross_attention(**inputs), rtol=1e-6, atol=1e-6)
    zero = linear_cross_attention(torch.zeros_like(inputs["q"]), inputs["k"], inputs["v"], inputs["gamma"])
    assert (zero == 0).all()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("q", (2, 3, 4), "q and k must be"),
        ("k", (1, 2, 3, 5), "do not fit each other"),
        ("v", (1, 2, 4, 6), "do not fit each other"),
        ("gamma", (3,), r"gamma must be \[2\]"),
    ],
)
def test_invalid_shapes_raise_with_the_name(name, shape, message):
    inputs = make_inputs(1, 2, 4, 6, 5)
    with pytest.raises(ValueError, match=message):
        linear_cross_attention(**dict(inputs, **{name: torch.zeros(shape)}))


def test_operator_registration():
    inputs = make_inputs(1, 2, 3, 4, 5)
    torch.library.opcheck(linear_cross_attention, tuple(x.requires_grad_() for x in inputs.values()))
