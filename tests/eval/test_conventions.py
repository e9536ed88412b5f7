"""The metrics of the evaluation scripts of LAVT, ReMamber and CRIS for the same masks, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tfanet.errors import UserError
from tfanet_eval.metrics import CONVENTIONS, SegmentationMetrics, convention_named

# (intersection, union): IoU 1, exactly 3/5, exactly 7/10 of few and of many pixels, two empty masks.
SAMPLES = [(10, 10), (3, 5), (7, 10), (700, 1000), (0, 0)]


def result_of(name: str, samples: list[tuple[int, int]]) -> dict[str, float]:
    return SegmentationMetrics.of(samples, name).result()


@pytest.mark.parametrize("name", ["original", "480"])
def test_lavt_counts_samples_exactly_on_the_bound(name):
    """IoUs 1, 0.6, 0.7, 0.7 and 0: mean 3.0 / 5; sums 720 / 1025; >= keeps every sample on its bound."""
    metrics = result_of(name, SAMPLES)
    assert metrics["mIoU"] == pytest.approx(3.0 / 5, abs=1e-15)
    assert metrics["oIoU"] == 720 / 1025
    assert [metrics[f"P@{x}"] for x in (0.5, 0.6, 0.7, 0.8, 0.9)] == [4 / 5, 4 / 5, 3 / 5, 1 / 5, 1 / 5]


def test_remamber_adds_epsilon_to_unions_and_to_the_mean_union():
    metrics = result_of("remamber", SAMPLES)
    ious = [10 / 10.000001, 3 / 5.000001, 7 / 10.000001, 700 / 1000.000001, 0 / 0.000001]
    assert metrics["mIoU"] == pytest.approx(sum(ious) / 5, rel=1e-15)
    assert metrics["oIoU"] == pytest.approx((720 / 5) / (1025 / 5 + 1e-6), rel=1e-15)
    assert CONVENTIONS["remamber"].prints == ("mIoU", "oIoU")


def test_cris_compares_with_single_precision_bounds():
    """Its bounds are float32: 0.6 is above 3/5; 0.7 is so far below 7/10 that adding epsilon to the union
    moves only the small mask below it."""
    metrics = result_of("cris", SAMPLES)
    assert metrics["P@0.5"] == 4 / 5
    assert metrics["P@0.6"] == 3 / 5  # LAVT: 4 / 5
    assert metrics["P@0.7"] == 2 / 5  # LAVT: 3 / 5
    assert CONVENTIONS["cris"].prints == ("mIoU", "P@X")


@pytest.mark.parametrize("name", ["cris", "cris-first"])
def test_cris_bounds_equal_those_of_its_torch_arange(name):
    """As in its script: double IoUs are compared with the elements of a float32 `arange`."""
    rng = np.random.default_rng(0)
    unions = rng.integers(1, 2000, 3000)
    samples = [(int(u * rng.choice([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])), int(u)) for u in unions]
    ious = torch.tensor([i / (u + 1e-6) for i, u in samples], dtype=torch.float64)
    metrics = result_of(name, samples)
    for bound, x in zip(torch.arange(0.5, 1.0, 0.1), (0.5, 0.6, 0.7, 0.8, 0.9), strict=True):
        assert metrics[f"P@{x}"] == pytest.approx((ious > bound).double().mean().item(), abs=1e-12)


def test_mask_threshold_of_each_convention():
    """A pixel with probability 0.4, or exactly 0.5, is foreground only for CRIS."""
    target = np.ones((1, 4), np.uint8)
    logits = np.log(np.array([[0.3, 0.4, 0.5, 0.6]]) / (1 - np.array([[0.3, 0.4, 0.5, 0.6]]))).astype(
        np.float32
    )
    counts = {
        name: int(c.masks(logits, target)[0].sum()) for name, c in CONVENTIONS.items() if c.side is None
    }
    assert counts == {"original": 1, "remamber": 1, "cris": 3, "cris-first": 3}


def test_logits_are_resized_as_the_convention_says():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((24, 24)).astype(np.float32)
    target = (rng.random((61, 47)) > 0.5).astype(np.uint8)
    plane = torch.from_numpy(logits)[None, None]

    def resized(size, mode, values=plane):
        options = {} if mode == "nearest" else {"align_corners": False}
        return torch.nn.functional.interpolate(values, size, mode=mode, **options)[0, 0].numpy()

    expected = {
        "original": resized((61, 47), "bilinear") > 0,
        "480": resized((480, 480), "bilinear") > 0,
        "remamber": resized((61, 47), "nearest") > 0,
        "cris": resized((61, 47), "bicubic", plane.sigmoid()) > 0.35,
    }
    for name, expected_mask in expected.items():
        mask, resized_target = CONVENTIONS[name].masks(logits, target)
        assert mask.shape == resized_target.shape == expected_mask.shape
        assert np.mean(mask != expected_mask) < 1e-4, name
    square = CONVENTIONS["480"].masks(logits, target)[1]
    rows, columns = (((np.arange(480) + 0.5) * n / 480).astype(int) for n in target.shape)
    assert np.array_equal(square, target[rows][:, columns] > 0)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_merging_requires_equal_conventions(name):
    parts = [SegmentationMetrics.of(SAMPLES[:2], name), SegmentationMetrics.of(SAMPLES[2:], name)]
    assert (parts[1] + parts[0]).result() == result_of(name, SAMPLES[2:] + SAMPLES[:2])
    other = SegmentationMetrics("480" if name != "480" else "original")
    with pytest.raises(ValueError, match="cannot merge"):
        parts[0].merge(other)


def test_unknown_convention_lists_the_known_ones():
    with pytest.raises(UserError, match="original, 480, remamber, cris"):
        convention_named("coco")
