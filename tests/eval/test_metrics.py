"""Metrics of masks small enough to count by hand; bootstrap intervals against analytic values."""

from __future__ import annotations

import numpy as np
import pytest
from fake_engines import record

from tfanet_eval.metrics import THRESHOLDS, SegmentationMetrics, convention_named, resample

ORIGINAL = convention_named("original")


def row(pixels: str) -> np.ndarray:
    """`##..` as a bool mask of one row."""
    return np.array([[letter == "#" for letter in pixels]])


def of(*pairs: tuple[str, str]) -> SegmentationMetrics:
    metrics = SegmentationMetrics()
    for prediction, target in pairs:
        metrics.update(row(prediction), row(target))
    return metrics


def test_miou_is_the_mean_of_ratios_and_oiou_the_ratio_of_sums():
    metrics = of(("#.........", "#........."), ("########..", ".#######.#")).result()
    assert metrics["mIoU"] == pytest.approx((1 / 1 + 7 / 9) / 2)
    assert metrics["oIoU"] == pytest.approx((1 + 7) / (1 + 9))
    assert metrics["count"] == 2


@pytest.mark.parametrize(
    ("prediction", "target", "iou"),
    [
        pytest.param("##..", "##..", 1.0, id="same"),
        pytest.param("##..", "..##", 0.0, id="disjoint"),
        pytest.param("####", "#...", 0.25, id="too-large"),
        pytest.param("....", "....", 0.0, id="both-empty"),
        pytest.param("....", "#...", 0.0, id="missed"),
        pytest.param("#...", "....", 0.0, id="false-positive"),
    ],
)
def test_iou_of_one_sample(prediction, target, iou):
    metrics = SegmentationMetrics()
    assert metrics.update(row(prediction), row(target)) == iou
    assert metrics.result()["mIoU"] == iou


def test_empty_union_lowers_miou_but_not_oiou():
    metrics = of(("##", "##"), ("..", "..")).result()
    assert metrics["mIoU"] == 0.5
    assert metrics["oIoU"] == 1.0
    assert metrics["P@0.5"] == 0.5


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_precision_counts_samples_exactly_at_the_threshold(threshold):
    tenths = round(10 * threshold)
    target = "#" * 10
    at, below = "#" * tenths + "." * (10 - tenths), "#" * (tenths - 1) + "." * (11 - tenths)
    metrics = of((at, target), (below, target)).result()
    assert metrics[f"P@{threshold}"] == 0.5


def test_logits_above_zero_are_foreground():
    metrics = SegmentationMetrics()
    assert metrics.update(np.array([[0.0, 1e-6, -3.0, 2.0]], np.float32), np.array([[1, 1, 0, 1]])) == 2 / 3


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_masks_of_any_integer_dtype(dtype):
    metrics = SegmentationMetrics()
    assert metrics.update(row("##.").astype(dtype), row("#..").astype(np.uint8)) == 0.5


def test_merged_parts_equal_one_pass_to_the_last_bit():
    rng = np.random.default_rng(0)
    masks = [(rng.random((7, 9)) > rng.random(), rng.random((7, 9)) > rng.random()) for _ in range(50)]
    single, parts = SegmentationMetrics(), [SegmentationMetrics() for _ in range(3)]
    for index, (prediction, target) in enumerate(masks):
        single.update(prediction, target)
        parts[index % 3].update(prediction, target)
    merged = parts[2]
    merged.merge(parts[0])
    assert (merged + parts[1]).result() == single.result()
    assert len(merged) + len(parts[1]) == 50


def test_adding_does_not_change_the_operands():
    left, right = of(("#", "#")), of((".", "#"))
    assert (left + right).result()["mIoU"] == 0.5
    assert (left.result()["mIoU"], right.result()["mIoU"]) == (1.0, 0.0)


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (1, 1, 4)])
def test_masks_of_different_shapes_raise(shape):
    with pytest.raises(ValueError, match=r"not both 2-D|differ in shape"):
        SegmentationMetrics().update(np.zeros(shape, bool), row("...."))


def test_result_without_samples_raises():
    with pytest.raises(ValueError, match="no sample"):
        SegmentationMetrics().result()


def records_of(ious, images):
    return [
        record(index, image=image, intersection=round(100 * iou), union=100)
        for index, (iou, image) in enumerate(zip(ious, images, strict=True))
    ]


def test_interval_of_many_images_is_that_of_the_normal_distribution():
    ious = np.random.default_rng(1).random(800).round(2)
    resampled = resample(records_of(ious, range(800)), ORIGINAL)
    spread = 1.96 * ious.std() / 800**0.5
    low, high = resampled.interval("mIoU")
    assert (low, high) == pytest.approx((ious.mean() - spread, ious.mean() + spread), abs=0.15 * spread)
    precision = (ious >= 0.7).mean()
    low, high = resampled.interval("P@0.7")
    spread = 1.96 * (precision * (1 - precision) / 800) ** 0.5
    assert (low, high) == pytest.approx((precision - spread, precision + spread), abs=0.15 * spread)


def test_expressions_of_one_image_are_resampled_together():
    ious = np.repeat(np.random.default_rng(2).random(60).round(2), 10)
    separate = resample(records_of(ious, range(600)), ORIGINAL)
    together = resample(records_of(ious, np.repeat(range(60), 10).tolist()), ORIGINAL)
    (low, high), (least, most) = separate.interval("mIoU"), together.interval("mIoU")
    assert (most - least) / (high - low) == pytest.approx(10**0.5, rel=0.1)


def test_two_engines_are_resampled_alike():
    """The interval of a constant difference has no width, however wide those of the metrics are."""
    ious = np.random.default_rng(3).integers(0, 80, 200) / 100
    first, second = (resample(records_of(ious + shift, range(200)), ORIGINAL) for shift in (0, 0.1))
    assert second.difference(first, "mIoU") == pytest.approx((0.1, 0.1))
    assert first.interval("mIoU")[1] - first.interval("mIoU")[0] > 0.03


def test_equal_samples_have_intervals_of_no_width():
    resampled = resample(records_of([0.5] * 20, range(20)), ORIGINAL)
    for name, value in {"mIoU": 0.5, "oIoU": 0.5, "P@0.5": 1.0, "P@0.6": 0.0}.items():
        assert resampled.interval(name) == pytest.approx((value, value))


def test_resampling_no_samples_raises():
    with pytest.raises(ValueError, match="no sample"):
        resample([], ORIGINAL)


def test_single_image_has_an_interval_of_no_width():
    assert resample(records_of([0.4, 0.6], [0, 0]), ORIGINAL).interval("mIoU") == pytest.approx((0.5, 0.5))
