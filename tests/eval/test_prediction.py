"""Cells of a contact sheet: evenly spread samples with the IoU that the metrics give."""

from __future__ import annotations

import numpy as np
import pytest
from fake_engines import Boxes, FakeEngine, everything, oracle
from PIL import Image

from tfanet.errors import VerificationError
from tfanet_eval.metrics import SegmentationMetrics
from tfanet_eval.prediction import predict, prediction_cells


def test_cells_carry_the_iou_of_the_metrics():
    dataset = Boxes(8)
    perfect = prediction_cells(FakeEngine(oracle), dataset, 4)
    assert [cell.expression for cell in perfect] == ["box 0", "box 1", "box 2", "box 3"]
    assert [cell.iou for cell in perfect] == [1.0] * 4
    for cell in prediction_cells(FakeEngine(everything), dataset, 4):
        assert cell.iou == SegmentationMetrics().update(cell.prediction, cell.target)
        assert 0 < cell.iou < 0.1


def test_long_sentences_of_a_data_set_are_cut():
    class Wordy(Boxes):
        def __getitem__(self, index):
            expression = super().__getitem__(index)
            return type(expression)(**{**vars(expression), "text": "very " * 40 + "red box"})

    assert len(prediction_cells(FakeEngine(oracle), Wordy(2), 2)) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_logit_that_is_not_finite_is_no_mask(value):
    def broken(images, tokens):
        logits = oracle(images, tokens)
        logits[0, 3, 5] = value
        return logits

    with pytest.raises(VerificationError, match="fake gives logits that are NaN or infinite for 'red'"):
        predict(FakeEngine(broken), Image.new("RGB", (20, 10)), "red")
