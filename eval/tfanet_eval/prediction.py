"""One picture and one sentence through an engine, and sheets of such pairs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfanet.data.images import logits_to_size, resize_image
from tfanet.errors import VerificationError
from tfanet_eval.metrics import SegmentationMetrics

if TYPE_CHECKING:
    from PIL import Image

    from tfanet.data.refer import ReferDataset
    from tfanet.visualize import Cell
    from tfanet_engines.engine import Engine
    from tfanet_eval.runs import Request

SHEET_CELLS = 12
"""Samples on a sheet."""


def predict(engine: Engine, picture: Image.Image, sentence: str, *, strict: bool = True) -> np.ndarray:
    """Mask logits float32 `[H, W]` at the picture's own size; the object is where they are above 0.

    Raises `UserError` when the sentence is empty or longer than the model's context; with `strict` off it is
    cut, as data sets are read. Raises `VerificationError` when a logit is not finite.
    """
    from tfanet.data.transforms import tokenize

    tokens = tokenize([sentence], engine.config.token_length, strict=strict)
    logits = engine.infer(resize_image(picture, engine.config.image_size)[None], tokens)
    if not np.isfinite(logits).all():
        raise VerificationError(f"{engine.name} gives logits that are NaN or infinite for {sentence!r}")
    return logits_to_size(logits[0], picture.height, picture.width)


def prediction_cells(engine: Engine, dataset: ReferDataset, count: int) -> list[Cell]:
    """Cells of `count` samples for `contact_sheet`, evenly spread over the data set, so not picked."""
    from tfanet.visualize import Cell

    cells = []
    for index in spread(len(dataset), count):
        expression = dataset[index]
        picture = dataset.image(expression)
        mask = predict(engine, picture, expression.text, strict=False) > 0
        truth = dataset.mask(expression) > 0
        iou = SegmentationMetrics().update(mask, truth)
        cells.append(Cell(picture, expression.text, mask, truth, iou))
    return cells


def write_sheet(request: Request, path: Path, title: str) -> None:
    """Write a contact sheet of what the request's engine predicts on its first split."""
    from tfanet.visualize import contact_sheet, save_image
    from tfanet_engines import open_engine

    dataset = request.datasets()[request.splits[0]]
    with open_engine(request.engine, image_size=request.image_size, trust=request.trust) as engine:
        cells = prediction_cells(engine, dataset, SHEET_CELLS)
    save_image(contact_sheet(cells, title=title), path)


def spread(total: int, count: int) -> Iterable[int]:
    """`count` different indices, or all `total` where there are fewer, at even distances."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
