"""The example images of a report: best, worst, and those whose IoU differs most between engines."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tfanet_eval.report.entries import Entry
from tfanet_eval.report.error_maps import error_map

if TYPE_CHECKING:
    from tfanet_eval.results import Record

COUNT = 6
"""Samples per section."""
_SIDE = 240
"""Pixels of a thumbnail's longer side."""


@dataclass(frozen=True)
class Thumbnail:
    """One small image of a sample; `uri` contains it."""

    uri: str
    width: int
    height: int
    alt: str
    label: str
    iou: str = ""


@dataclass(frozen=True)
class Sample:
    expression: str
    note: str
    images: list[Thumbnail]


@dataclass(frozen=True)
class Section:
    """Samples under one heading."""

    anchor: str
    title: str
    text: str
    samples: list[Sample]


def sections_of(entries: Sequence[Entry], *, trust: bool) -> tuple[list[Section], str]:
    """The sections of a report, or none and the reason. Runs the engines on the samples that are shown."""
    missing = [entry.name for entry in entries if entry.engine is None]
    if missing:
        return [], f"No masks are shown: the files of {', '.join(missing)} were not given (--engine)."
    run = entries[0].results.run
    if run["shuffled_sentences"]:
        return [], "No masks are shown: the expressions were shuffled among the images."
    if not Path(run["data"]).is_dir():
        return [], f"No masks are shown: the data set is no longer at {run['data']}."
    chosen = _choose(entries)
    samples = _draw(entries, sorted({index for *_, indices in chosen for index in indices}), trust)
    return [
        Section(anchor, title, text, [samples[index] for index in indices])
        for anchor, title, text, indices in chosen
    ], ""


def _choose(entries: Sequence[Entry]) -> list[tuple[str, str, str, list[int]]]:
    """Anchor, title, text and record indices of every section."""
    ious = np.array([entry.ious for entry in entries])
    images = [(record.split, record.image) for record in entries[0].evaluation.records]
    name = entries[0].name
    chosen = [
        ("best", "Best", f"The highest IoU of {name}, one expression per image.", _lowest(-ious[0], images)),
        ("worst", "Worst", f"The lowest IoU of {name}, one expression per image.", _lowest(ious[0], images)),
    ]
    if len(entries) > 1:
        spans = np.ptp(ious, axis=0)
        indices = [index for index in _lowest(-spans, images) if spans[index] > 0]
        text = "Where the engines' IoU differs most." if indices else "No IoU differs between the engines."
        chosen.append(("changed", "Most changed", text, indices))
    return chosen


def _lowest(keys: np.ndarray, images: Sequence[tuple[str, int]]) -> list[int]:
    """The indices of the `COUNT` smallest keys, at most one per image."""
    by_image: dict[tuple[str, int], int] = {}
    for index in np.argsort(keys, kind="stable").tolist():
        by_image.setdefault(images[index], index)
        if len(by_image) == COUNT:
            break
    return list(by_image.values())


def _draw(entries: Sequence[Entry], indices: Sequence[int], trust: bool) -> dict[int, Sample]:
    """The sample at each index: the image with the ground truth, and every engine's errors."""
    from tfanet.data.refer import ReferDataset, ReferFiles
    from tfanet.visualize import overlay

    run = entries[0].results.run
    files = ReferFiles.load(run["data"], run["dataset"], run["split_by"])
    datasets = {split: ReferDataset.of(files, split) for split in run["splits"]}
    records = {index: entries[0].evaluation.records[index] for index in indices}
    pixels, targets, thumbnails = {}, {}, {}
    for index, record in records.items():
        dataset = datasets[record.split]
        sample = dataset[record.index]
        pixels[index], targets[index] = dataset.image(sample), dataset.mask(sample) > 0
        drawn = overlay(pixels[index], None, targets[index])
        thumbnails[index] = [_thumbnail(drawn, "ground truth", f"the object of: {record.text}")]
    for entry in entries:
        for index, mask in _masks(entry, records, pixels, trust).items():
            iou = f"{entry.ious[index]:.3f}"
            drawn = error_map(pixels[index], mask, targets[index])
            thumbnails[index].append(_thumbnail(drawn, entry.name, f"errors of {entry.name}, IoU {iou}", iou))
    return {
        index: Sample(record.text, f"{record.split}, image {record.image}", thumbnails[index])
        for index, record in records.items()
    }


def _masks(
    entry: Entry, records: Mapping[int, Record], images: Mapping[int, Image.Image], trust: bool
) -> dict[int, np.ndarray]:
    """The predicted masks by index, bool `[H, W]` at the image's own size whatever the convention."""
    from tfanet_engines import open_engine
    from tfanet_eval.prediction import predict

    assert entry.engine is not None
    size = entry.results.run["image_size"]
    with open_engine(entry.engine, image_size=size, trust=trust) as engine:
        return {
            index: predict(engine, images[index], record.text, strict=False) > 0
            for index, record in records.items()
        }


def _thumbnail(image: Image.Image, label: str, alt: str, iou: str = "") -> Thumbnail:
    """`image` as a JPEG of at most `_SIDE` pixels a side, in a data URI."""
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=82)
    uri = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Thumbnail(uri, *small.size, alt, label, iou)
