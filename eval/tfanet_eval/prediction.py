"""Predict the mask of one image and expression, and draw sheets of predictions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfanet.data.preprocess import logits_to_size, resize_image
from tfanet.deprecation import renamed_arguments
from tfanet.errors import VerificationError
from tfanet_eval.metrics import SegmentationMetrics

if TYPE_CHECKING:
    from PIL import Image

    from tfanet.data.refer import ReferDataset
    from tfanet.visualize import Cell
    from tfanet_engines.engine import Engine
    from tfanet_eval.jobs import EvaluationJob

SHEET_CELLS = 12
"""Samples on a sheet."""


@renamed_arguments(picture="image", sentence="expression")
def predict(engine: Engine, image: Image.Image, expression: str, *, strict: bool = True) -> np.ndarray:
    """Mask logits float32 `[H, W]` at the image's own size; the mask is where they are above 0.

    Raises `UserError` if the expression is empty or longer than the model's token length; without `strict` a
    long one is cut, as it is when data sets are read. Raises `VerificationError` if a logit is not finite.
    """
    from tfanet.data.preprocess import tokenize

    tokens = tokenize([expression], engine.config.token_length, strict=strict)
    logits = engine.infer(resize_image(image, engine.config.image_size)[None], tokens)
    if not np.isfinite(logits).all():
        raise VerificationError(f"{engine.name} gives logits that are NaN or infinite for {expression!r}")
    return logits_to_size(logits[0], image.height, image.width)


def describe_mask(mask: np.ndarray) -> str:
    """Area and bounding box of a mask bool `[H, W]` as text."""
    height, width = mask.shape
    if not mask.any():
        return f"nothing found in {width} x {height} pixels"
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = f"x {columns[0]}..{columns[-1]}, y {rows[0]}..{rows[-1]}"
    return f"{100 * mask.mean():.2f} % of {width} x {height} pixels, box {box}"


def prediction_cells(engine: Engine, dataset: ReferDataset, count: int) -> list[Cell]:
    """Cells for `contact_sheet` of `count` samples, evenly spaced over the data set."""
    from tfanet.visualize import Cell

    cells = []
    for index in evenly_spaced(len(dataset), count):
        sample = dataset[index]
        image, target = dataset.image(sample), dataset.mask(sample) > 0
        mask = predict(engine, image, sample.text, strict=False) > 0
        iou = SegmentationMetrics().update(mask, target)
        cells.append(Cell(image, sample.text, mask, target, iou))
    return cells


def write_sheet(job: EvaluationJob, path: Path, title: str) -> None:
    """Write a sheet of predictions of the job's engine on the first split of the job."""
    from tfanet.visualize import contact_sheet, save_image
    from tfanet_engines import open_engine

    dataset = job.datasets()[job.splits[0]]
    with open_engine(job.engine, image_size=job.image_size, trust=job.trust) as engine:
        cells = prediction_cells(engine, dataset, SHEET_CELLS)
    save_image(contact_sheet(cells, title=title), path)


def evenly_spaced(total: int, count: int) -> Iterable[int]:
    """`count` evenly spaced indices below `total`, or all of them if there are fewer."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
