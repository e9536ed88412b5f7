"""Figures on masks small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tfanet_eval.metrics import THRESHOLDS, SegmentationMetrics


def row(pixels: str) -> np.ndarray:
    """`##..` as a bool mask of one row."""
    return np.array([[letter == "#" for letter in pixels]])


def of(*pairs: tuple[str, str]) -> SegmentationMetrics:
    metrics = SegmentationMetrics()
    for prediction, truth in pairs:
        metrics.update(row(prediction), row(truth))
    return metrics


def test_miou_is_the_mean_of_quotients_and_oiou_the_quotient_of_sums():
    found = of(("#.........", "#........."), ("########..", ".#######.#")).result()
    assert found["mIoU"] == pytest.approx((1 / 1 + 7 / 9) / 2)
    assert found["oIoU"] == pytest.approx((1 + 7) / (1 + 9))
    assert found["count"] == 2


@pytest.mark.parametrize(
    ("prediction", "truth", "iou"),
    [
        pytest.param("##..", "##..", 1.0, id="same"),
        pytest.param("##..", "..##", 0.0, id="apart"),
        pytest.param("####", "#...", 0.25, id="too-large"),
        pytest.param("....", "....", 0.0, id="both-empty"),
        pytest.param("....", "#...", 0.0, id="missed"),
        pytest.param("#...", "....", 0.0, id="invented"),
    ],
)
def test_iou_of_one_sample(prediction, truth, iou):
    metrics = SegmentationMetrics()
    assert metrics.update(row(prediction), row(truth)) == iou
    assert metrics.result()["mIoU"] == iou


def test_an_empty_union_lowers_miou_but_not_oiou():
    found = of(("##", "##"), ("..", "..")).result()
    assert found["mIoU"] == 0.5
    assert found["oIoU"] == 1.0
    assert found["P@0.5"] == 0.5


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_precision_counts_a_sample_exactly_at_the_threshold(threshold):
    tenths = round(10 * threshold)
    truth = "#" * 10
    at, below = "#" * tenths + "." * (10 - tenths), "#" * (tenths - 1) + "." * (11 - tenths)
    found = of((at, truth), (below, truth)).result()
    assert found[f"P@{threshold}"] == 0.5


def test_logits_are_cut_at_zero_and_zero_is_background():
    metrics = SegmentationMetrics()
    assert metrics.update(np.array([[0.0, 1e-6, -3.0, 2.0]], np.float32), np.array([[1, 1, 0, 1]])) == 2 / 3


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_masks_of_any_integer_type(dtype):
    metrics = SegmentationMetrics()
    assert metrics.update(row("##.").astype(dtype), row("#..").astype(np.uint8)) == 0.5


def test_merging_parts_is_one_pass_to_the_last_bit():
    rng = np.random.default_rng(0)
    masks = [(rng.random((7, 9)) > rng.random(), rng.random((7, 9)) > rng.random()) for _ in range(50)]
    whole, parts = SegmentationMetrics(), [SegmentationMetrics() for _ in range(3)]
    for index, (prediction, truth) in enumerate(masks):
        whole.update(prediction, truth)
        parts[index % 3].update(prediction, truth)
    merged = parts[2]
    merged.merge(parts[0])
    assert (merged + parts[1]).result() == whole.result()
    assert len(merged) + len(parts[1]) == 50


def test_adding_leaves_both_sides_as_they_were():
    left, right = of(("#", "#")), of((".", "#"))
    assert (left + right).result()["mIoU"] == 0.5
    assert (left.result()["mIoU"], right.result()["mIoU"]) == (1.0, 0.0)


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (1, 1, 4)])
def test_masks_of_different_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"not both 2-D|differ in shape"):
        SegmentationMetrics().update(np.zeros(shape, bool), row("...."))


def test_no_sample_has_no_figures():
    with pytest.raises(ValueError, match="no sample"):
        SegmentationMetrics().result()
