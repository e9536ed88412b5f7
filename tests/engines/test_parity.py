"""Parity metrics of small masks, counted by hand, and the tolerances."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tfanet.errors import VerificationError
from tfanet_engines.parity import TOLERANCES, ParityMetrics, compare_logits, gate


def logits(*rows):
    return np.array(rows, dtype=np.float32)


def test_metrics_of_one_pair():
    metrics = compare_logits(logits([1, 1], [-1, -1]), logits([1.5, -1], [-1, -1]))
    assert (metrics.pairs, metrics.pixels, metrics.flipped) == (1, 4, 1)
    assert metrics.max_abs_error == 2
    assert metrics.mean_abs_error == pytest.approx(2.5 / 4)
    assert metrics.mask_agreement == pytest.approx(1 / 2)
    assert metrics.pixels_flipped == pytest.approx(1 / 4)


def test_mask_agreement_is_the_mean_over_pairs_and_1_for_empty_masks():
    reference = np.stack([logits([1, 1], [1, 1]), logits([-1, -1], [-1, -1]), logits([1, -1], [-1, -1])])
    candidate = np.stack([logits([1, 1], [1, -1]), logits([-2, -2], [-2, -2]), logits([-1, 1], [-1, -1])])
    assert compare_logits(reference, candidate).mask_agreement == pytest.approx((3 / 4 + 1 + 0) / 3)


def test_the_sum_of_parts_is_the_metrics_of_all_pairs():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((7, 5, 5)).astype(np.float32)
    candidate = reference + 0.3 * rng.standard_normal((7, 5, 5)).astype(np.float32)
    parts = ParityMetrics()
    for i in range(0, 7, 2):
        parts += compare_logits(reference[i : i + 2], candidate[i : i + 2])
    whole = compare_logits(reference, candidate)
    assert parts.to_dict() == pytest.approx(whole.to_dict())
    assert parts.flipped == whole.flipped > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
def test_logits_that_are_not_finite_fail(bad, precision, side):
    finite, broken = logits([-1, -1], [-1, -1]), logits([-1, bad], [-1, -1])
    reference, candidate = {
        "reference": (broken, finite), "candidate": (finite, broken), "both": (broken, broken),
    }[side]  # fmt: skip
    metrics = compare_logits(reference, candidate)
    assert metrics.max_abs_error == math.inf
    with pytest.raises(VerificationError, match="NaN or infinite"):
        gate([compare_logits(finite, finite), metrics], precision).require("model.onnx")
    assert json.loads(json.dumps(metrics.to_dict(), allow_nan=False))["max_abs_error"] is None


@pytest.mark.parametrize("precision", TOLERANCES)
def test_no_pairs_fail(precision):
    with pytest.raises(VerificationError, match="no pair"):
        gate([], precision).require()


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 2), (2, 2, 2)])
def test_different_shapes_fail(shape):
    with pytest.raises(VerificationError, match="cannot be compared"):
        compare_logits(np.zeros((1, 2, 2)), np.zeros(shape))


CASES = [
    # max error, agreement, mIoU difference, precision, part of the message
    pytest.param(9e-4, 0.9995, 0.004, "fp32", None, id="fp32-within"),
    pytest.param(2e-3, 1.0, None, "fp32", "max logit error 0.002", id="fp32-error"),
    pytest.param(0.0, 0.998, None, "fp32", "mask agreement 0.9980", id="fp32-agreement"),
    pytest.param(0.5, 0.992, -0.004, "fp16", None, id="fp16-within"),
    pytest.param(0.5, 0.98, None, "fp16", "mask agreement 0.9800", id="fp16-agreement"),
    pytest.param(1.5, 1.0, None, "fp16", "is 0.15 standard deviations", id="fp16-another-model"),
    pytest.param(0.0, 1.0, 0.006, "fp16", "mIoU differs by 0.0060", id="fp16-miou"),
    pytest.param(0.0, 1.0, math.nan, "fp16", "mIoU differs", id="miou-undefined"),
]


@pytest.mark.parametrize(("error", "agreement", "drop", "precision", "message"), CASES)
def test_bounds(error, agreement, drop, precision, message):
    metrics = ParityMetrics(
        pairs=1, pixels=4, max_abs_error=error, sum_agreement=agreement, sum_reference_squares=4 * 10**2
    )
    if message is None:
        gate([metrics], precision, {"oIoU": 0.0} | ({} if drop is None else {"mIoU": drop})).require()
    else:
        with pytest.raises(VerificationError, match=message):
            gate([metrics], precision, {} if drop is None else {"mIoU": drop}).require()


def test_another_model_fails_although_all_masks_are_empty():
    """If all masks of two models are empty, only their logits differ."""
    rng = np.random.default_rng(0)
    one, other = (rng.normal(-4, 0.1, (2, 8, 8)).astype(np.float32) for _ in range(2))
    metrics = compare_logits(one[:1], other[:1]) + compare_logits(one[1:], other[1:])
    assert metrics.mask_agreement == 1.0
    assert metrics.relative_error == pytest.approx(np.abs(one - other).max() / one.std(), rel=1e-3)
    with pytest.raises(VerificationError, match="standard deviations"):
        gate([metrics], "fp16").require()
    gate([compare_logits(one, one + np.float32(1e-3))], "fp16").require()


def test_the_parity_check_lists_every_failure_and_the_worst_pairs():
    finite, broken = logits([9, -9], [-9, -9]), logits([9, -9], [-9, np.nan])
    candidates = [finite + 0.1 * i for i in range(7)] + [-finite, broken]
    verdict = gate([compare_logits(finite, candidate) for candidate in candidates[:8]], "fp32", {"oIoU": 0.2})
    assert [failure.split()[0] for failure in verdict.failures] == ["max", "mask", "oIoU"]
    assert verdict.worst == (7, 6, 5, 4, 3)
    assert gate([compare_logits(finite, candidate) for candidate in candidates], "fp32").worst[:2] == (8, 7)
    assert gate([compare_logits(finite, finite)], "fp32", {"mIoU": 0.0, "oIoU": 0.0}).failures == ()
