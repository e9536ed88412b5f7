"""Bootstrap intervals against analytic values."""

from __future__ import annotations

import numpy as np
import pytest
from fake_engines import record

from tfanet_eval.metrics import convention_named, resample

ORIGINAL = convention_named("original")


def records(ious, images):
    return [
        record(index, image=image, intersection=round(100 * iou), union=100)
        for index, (iou, image) in enumerate(zip(ious, images, strict=True))
    ]


def test_interval_of_many_images_is_that_of_the_normal_distribution():
    ious = np.random.default_rng(1).random(800).round(2)
    resampled = resample(records(ious, range(800)), ORIGINAL)
    spread = 1.96 * ious.std() / 800**0.5
    low, high = resampled.interval("mIoU")
    assert (low, high) == pytest.approx((ious.mean() - spread, ious.mean() + spread), abs=0.15 * spread)
    precision = (ious >= 0.7).mean()
    low, high = resampled.interval("P@0.7")
    spread = 1.96 * (precision * (1 - precision) / 800) ** 0.5
    assert (low, high) == pytest.approx((precision - spread, precision + spread), abs=0.15 * spread)


def test_expressions_of_one_image_are_resampled_together():
    ious = np.repeat(np.random.default_rng(2).random(60).round(2), 10)
    separate = resample(records(ious, range(600)), ORIGINAL)
    together = resample(records(ious, np.repeat(range(60), 10).tolist()), ORIGINAL)
    (low, high), (least, most) = separate.interval("mIoU"), together.interval("mIoU")
    assert (most - least) / (high - low) == pytest.approx(10**0.5, rel=0.1)


def test_two_engines_are_resampled_alike():
    """The interval of a constant difference has no width, however wide those of the metrics are."""
    ious = np.random.default_rng(3).integers(0, 80, 200) / 100
    first, second = (resample(records(ious + shift, range(200)), ORIGINAL) for shift in (0, 0.1))
    assert second.difference(first, "mIoU") == pytest.approx((0.1, 0.1))
    assert first.interval("mIoU")[1] - first.interval("mIoU")[0] > 0.03


def test_equal_samples_have_intervals_of_no_width():
    resampled = resample(records([0.5] * 20, range(20)), ORIGINAL)
    for name, value in {"mIoU": 0.5, "oIoU": 0.5, "P@0.5": 1.0, "P@0.6": 0.0}.items():
        assert resampled.interval(name) == pytest.approx((value, value))


def test_resampling_no_samples_raises():
    with pytest.raises(ValueError, match="no sample"):
        resample([], ORIGINAL)


def test_single_image_has_an_interval_of_no_width():
    assert resample(records([0.4, 0.6], [0, 0]), ORIGINAL).interval("mIoU") == pytest.approx((0.5, 0.5))
