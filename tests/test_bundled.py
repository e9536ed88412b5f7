"""The bundled model segments the described object at every language level, and depends on the expression."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tfanet
from tfanet.data.preprocess import resize_image, tokenize
from tfanet.data.shapes import render_pair
from tfanet.weights import bundled
from tfanet_eval import SegmentationMetrics

PAIRS = 24
FLOORS = {"shapes": 0.8, "attributes": 0.8, "positions": 0.75, "relations": 0.7, "all": 0.8}
"""Minimum mIoU by language level."""


@pytest.fixture(scope="module")
def model() -> tfanet.TFANet:
    return tfanet.load_model(bundled("tiny"))


@pytest.mark.parametrize("level", FLOORS)
def test_miou_depends_on_the_expression(model: tfanet.TFANet, level: str) -> None:
    images, expressions, masks = zip(*(render_pair(1, i, (level,)) for i in range(PAIRS)), strict=True)
    size = model.config.image_size
    inputs = torch.from_numpy(np.stack([resize_image(image, size) for image in images]))
    tokens = torch.from_numpy(tokenize(list(expressions), model.config.token_length))

    def mean_iou(tokens: torch.Tensor) -> float:
        metrics = SegmentationMetrics()
        with torch.inference_mode():
            for logits, mask in zip(model(inputs, tokens).numpy(), masks, strict=True):
                metrics.update(logits, mask)
        return metrics.result()["mIoU"]

    matching, shuffled = mean_iou(tokens), mean_iou(tokens.roll(1, 0))
    assert matching > FLOORS[level], matching
    assert matching > shuffled + 0.2, (matching, shuffled)
