"""Bootstrap intervals against what is known of them without drawing."""

from __future__ import annotations

import numpy as np
import pytest
from fake_engines import record

from tfanet_eval.metrics import convention_named, resample

ORIGINAL = convention_named("original")


def records(ious, pictures):
    return [
        record(index, image=picture, intersection=round(100 * iou), union=100)
        for index, (iou, picture) in enumerate(zip(ious, pictures, strict=True))
    ]


def test_the_interval_is_that_of_the_normal_distribution_where_pictures_are_many():
    ious = np.random.default_rng(1).random(800).round(2)
    found = resample(records(ious, range(800)), ORIGINAL)
    spread = 1.96 * ious.std() / 800**0.5
    low, high = found.interval("mIoU")
    assert (low, high) == pytest.approx((ious.mean() - spread, ious.mean() + spread), abs=0.15 * spread)
    share = (ious >= 0.7).mean()
    low, high = found.interval("P@0.7")
    spread = 1.96 * (share * (1 - share) / 800) ** 0.5
    assert (low, high) == pytest.approx((share - spread, share + spread), abs=0.15 * spread)


def test_sentences_of_one_picture_are_no_independent_samples():
    ious = np.repeat(np.random.default_rng(2).random(60).round(2), 10)
    alone = resample(records(ious, range(600)), ORIGINAL)
    together = resample(records(ious, np.repeat(range(60), 10).tolist()), ORIGINAL)
    (low, high), (least, most) = alone.interval("mIoU"), together.interval("mIoU")
    assert (most - least) / (high - low) == pytest.approx(10**0.5, rel=0.1)


def test_two_engines_are_drawn_alike():
    """A constant difference is certain, however uncertain the figures are."""
    ious = np.random.default_rng(3).integers(0, 80, 200) / 100
    one, other = (resample(records(ious + shift, range(200)), ORIGINAL) for shift in (0, 0.1))
    assert other.difference(one, "mIoU") == pytest.approx((0.1, 0.1))
    assert one.interval("mIoU")[1] - one.interval("mIoU")[0] > 0.03


def test_equal_samples_leave_nothing_to_chance():
    found = resample(records([0.5] * 20, range(20)), ORIGINAL)
    for figure, value in {"mIoU": 0.5, "oIoU": 0.5, "P@0.5": 1.0, "P@0.6": 0.0}.items():
        assert found.interval(figure) == pytest.approx((value, value))


def test_no_sample_has_no_interval():
    with pytest.raises(ValueError, match="no sample"):
        resample([], ORIGINAL)


def test_a_single_picture_has_an_interval_of_no_width():
    assert resample(records([0.4, 0.6], [0, 0]), ORIGINAL).interval("mIoU") == pytest.approx((0.5, 0.5))
