"""What the evaluation scripts of LAVT, ReMamber and CRIS print for the same masks, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tfanet.errors import UserError
from tfanet_eval.metrics import CONVENTIONS, SegmentationMetrics, convention_named

# (intersection, union): a hit, exactly 3/5, exactly 7/10 of few and of many pixels, nothing in either mask.
SAMPLES = [(10, 10), (3, 5), (7, 10), (700, 1000), (0, 0)]


def printed(name: str, samples: list[tuple[int, int]]) -> dict[str, float]:
    return SegmentationMetrics.of(samples, name).result()


@pytest.mark.parametrize("name", ["original", "480"])
def test_lavt_prints_quotients_and_counts_what_lies_on_the_bound(name):
    """IoUs 1, 0.6, 0.7, 0.7 and 0: mean 3.0 / 5; sums 720 / 1025; >= keeps every sample on its bound."""
    found = printed(name, SAMPLES)
    assert found["mIoU"] == pytest.approx(3.0 / 5, abs=1e-15)
    assert found["oIoU"] == 720 / 1025
    assert [found[f"P@{x}"] for x in (0.5, 0.6, 0.7, 0.8, 0.9)] == [4 / 5, 4 / 5, 3 / 5, 1 / 5, 1 / 5]


def test_remamber_adds_a_millionth_to_unions_and_to_the_mean_union():
    found = printed("remamber", SAMPLES)
    ious = [10 / 10.000001, 3 / 5.000001, 7 / 10.000001, 700 / 1000.000001, 0 / 0.000001]
    assert found["mIoU"] == pytest.approx(sum(ious) / 5, rel=1e-15)
    assert found["oIoU"] == pytest.approx((720 / 5) / (1025 / 5 + 1e-6), rel=1e-15)
    assert CONVENTIONS["remamber"].prints == ("mIoU", "oIoU")


def test_cris_compares_with_single_precision_bounds():
    """Its bounds are float32: 0.6 lies above 3/5, and 0.7 so far below 7/10 that the millionth added to the
    union tips only the small mask under it."""
    found = printed("cris", SAMPLES)
    assert found["P@0.5"] == 4 / 5
    assert found["P@0.6"] == 3 / 5  # LAVT: 4 / 5
    assert found["P@0.7"] == 2 / 5  # LAVT: 3 / 5
    assert CONVENTIONS["cris"].prints == ("mIoU", "P@X")


@pytest.mark.parametrize("name", ["cris", "cris-first"])
def test_the_bounds_of_cris_are_those_of_its_torch_range(name):
    """As its script does: double IoUs against the elements of a float32 range."""
    rng = np.random.default_rng(0)
    unions = rng.integers(1, 2000, 3000)
    samples = [(int(u * rng.choice([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])), int(u)) for u in unions]
    ious = torch.tensor([i / (u + 1e-6) for i, u in samples], dtype=torch.float64)
    found = printed(name, samples)
    for bound, x in zip(torch.arange(0.5, 1.0, 0.1), (0.5, 0.6, 0.7, 0.8, 0.9), strict=True):
        assert found[f"P@{x}"] == pytest.approx((ious > bound).double().mean().item(), abs=1e-12)


def test_the_mask_is_cut_where_the_script_cuts():
    """A pixel of probability 0.4 is the object's for CRIS alone; of 0.5 exactly it is nobody's but CRIS's."""
    truth = np.ones((1, 4), np.uint8)
    logits = np.log(np.array([[0.3, 0.4, 0.5, 0.6]]) / (1 - np.array([[0.3, 0.4, 0.5, 0.6]]))).astype(
        np.float32
    )
    counts = {name: int(c.masks(logits, truth)[0].sum()) for name, c in CONVENTIONS.items() if c.side is None}
    assert counts == {"original": 1, "remamber": 1, "cris": 3, "cris-first": 3}


def test_the_size_and_the_way_there():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((24, 24)).astype(np.float32)
    truth = (rng.random((61, 47)) > 0.5).astype(np.uint8)
    plane = torch.from_numpy(logits)[None, None]

    def resized(size, mode, values=plane):
        more = {} if mode == "nearest" else {"align_corners": False}
        return torch.nn.functional.interpolate(values, size, mode=mode, **more)[0, 0].numpy()

    wanted = {
        "original": resized((61, 47), "bilinear") > 0,
        "480": resized((480, 480), "bilinear") > 0,
        "remamber": resized((61, 47), "nearest") > 0,
        "cris": resized((61, 47), "bicubic", plane.sigmoid()) > 0.35,
    }
    for name, mask in wanted.items():
        found, target = CONVENTIONS[name].masks(logits, truth)
        assert found.shape == target.shape == mask.shape
        assert np.mean(found != mask) < 1e-4, name
    square = CONVENTIONS["480"].masks(logits, truth)[1]
    rows, columns = (((np.arange(480) + 0.5) * n / 480).astype(int) for n in truth.shape)
    assert np.array_equal(square, truth[rows][:, columns] > 0)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_parts_merge_and_conventions_do_not(name):
    parts = [SegmentationMetrics.of(SAMPLES[:2], name), SegmentationMetrics.of(SAMPLES[2:], name)]
    assert (parts[1] + parts[0]).result() == printed(name, SAMPLES[2:] + SAMPLES[:2])
    other = SegmentationMetrics("480" if name != "480" else "original")
    with pytest.raises(ValueError, match="cannot merge"):
        parts[0].merge(other)


def test_an_unknown_convention_names_the_known():
    with pytest.raises(UserError, match="original, 480, remamber, cris"):
        convention_named("coco")
