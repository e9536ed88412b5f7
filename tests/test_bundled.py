"""The bundled model finds what sentences of every level of language describe, and finds it by reading."""

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
"""mIoU of the pairs below."""


@pytest.fixture(scope="module")
def model() -> tfanet.TFANet:
    return tfanet.load_model(bundled("tiny"))


@pytest.mark.parametrize("level", FLOORS)
def test_it_reads(model: tfanet.TFANet, level: str) -> None:
    pictures, sentences, masks = zip(*(render_pair(1, i, (level,)) for i in range(PAIRS)), strict=True)
    size = model.config.image_size
    images = torch.from_numpy(np.stack([resize_image(picture, size) for picture in pictures]))
    tokens = torch.from_numpy(tokenize(list(sentences), model.config.token_length))

    def mean_iou(tokens: torch.Tensor) -> float:
        metrics = SegmentationMetrics()
        with torch.inference_mode():
            for logits, mask in zip(model(images, tokens).numpy(), masks, strict=True):
                metrics.update(logits, mask)
        return metrics.result()["mIoU"]

    own, other = mean_iou(tokens), mean_iou(tokens.roll(1, 0))
    assert own > FLOORS[level], own
    assert own > other + 0.2, (own, other)
