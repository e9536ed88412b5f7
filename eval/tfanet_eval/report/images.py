"""The samples that a report shows: best, worst, and those that changed most between engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfanet_eval.report.error_maps import error_map, inline

if TYPE_CHECKING:
    from PIL import Image

    from tfanet.data.refer import ReferDataset
    from tfanet_eval.report.page import Entry
    from tfanet_eval.results import Record

COUNT = 6


@dataclass(frozen=True)
class Picture:
    """One picture of a sample; `uri` holds it."""

    uri: str
    width: int
    height: int
    alt: str
    label: str
    iou: str = ""


@dataclass(frozen=True)
class Sample:
    sentence: str
    note: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Sheet:
    """Samples under one heading."""

    anchor: str
    title: str
    text: str
    samples: list[Sample]


def sheets_of(entries: Sequence[Entry], *, trust: bool) -> tuple[list[Sheet], str]:
    """The sheets of a report, or none and the reason. The engines run again, for what is shown."""
    without = [entry.name for entry in entries if entry.engine is None]
    if without:
        return [], f"No masks are shown: the files of {', '.join(without)} were not given (--engine)."
    run = entries[0].results.run
    if run["shuffled_sentences"]:
        return [], "No masks are shown: the sentences were shuffled among the pictures."
    if not Path(run["data"]).is_dir():
        return [], f"No masks are shown: the data set is no longer at {run['data']}."
    chosen = _chosen(entries)
    drawn = _draw(entries, sorted({place for _, _, _, places in chosen for place in places}), trust)
    return [
        Sheet(anchor, title, text, [drawn[place] for place in places])
        for anchor, title, text, places in chosen
    ], ""


def _chosen(entries: Sequence[Entry]) -> list[tuple[str, str, str, list[int]]]:
    """Anchor, title, text and places in the records of each sheet that has samples."""
    rules = entries[0].evaluation.convention
    ious = np.array([[rules.iou(r.intersection, r.union) for r in e.evaluation.records] for e in entries])
    pictures = [(record.split, record.image) for record in entries[0].evaluation.records]
    name = entries[0].name
    chosen = [
        ("best", "Best", f"The highest IoU of {name}, one sentence a picture.", _first(-ious[0], pictures)),
        ("worst", "Worst", f"The lowest IoU of {name}, one sentence a picture.", _first(ious[0], pictures)),
    ]
    if len(entries) > 1:
        spans = ious.max(axis=0) - ious.min(axis=0)
        places = [place for place in _first(-spans, pictures) if spans[place] > 0]
        text = "Where the engines' IoU differs most." if places else "No IoU differs between the engines."
        chosen.append(("changed", "Most changed", text, places))
    return chosen


def _first(keys: np.ndarray, pictures: Sequence[tuple[str, int]]) -> list[int]:
    """The places of the `COUNT` smallest keys, at most one a picture."""
    found: dict[tuple[str, int], int] = {}
    for place in np.argsort(keys, kind="stable").tolist():
        found.setdefault(pictures[place], place)
        if len(found) == COUNT:
            break
    return list(found.values())


def _draw(entries: Sequence[Entry], places: Sequence[int], trust: bool) -> dict[int, Sample]:
    """The sample at each place: the picture with the truth, and every engine's errors."""
    from tfanet.data.refer import ReferDataset, ReferFiles
    from tfanet.visualize import overlay

    run = entries[0].results.run
    files = ReferFiles.load(run["data"], run["dataset"], run["split_by"])
    datasets = {split: ReferDataset.of(files, split) for split in run["splits"]}
    records = {place: entries[0].evaluation.records[place] for place in places}
    pictures = {place: _picture(datasets[record.split], record.index) for place, record in records.items()}
    shown = {
        place: [_shown(overlay(picture, None, truth), "truth", f"the object of: {records[place].text}")]
        for place, (picture, truth) in pictures.items()
    }
    for entry in entries:
        for place, mask in _masks(entry, records, pictures, trust).items():
            record = entry.evaluation.records[place]
            iou = f"{entry.evaluation.convention.iou(record.intersection, record.union):.3f}"
            errors = error_map(pictures[place][0], mask, pictures[place][1])
            shown[place].append(_shown(errors, entry.name, f"errors of {entry.name}, IoU {iou}", iou))
    return {
        place: Sample(record.text, f"{record.split}, picture {record.image}", shown[place])
        for place, record in records.items()
    }


def _masks(
    entry: Entry,
    records: dict[int, Record],
    pictures: dict[int, tuple[Image.Image, np.ndarray]],
    trust: bool,
) -> dict[int, np.ndarray]:
    """bool `[H, W]` of each place, at the picture's own size whatever the convention."""
    from tfanet_engines import open_engine
    from tfanet_eval.prediction import predict

    assert entry.engine is not None
    size = entry.results.run["image_size"]
    with open_engine(entry.engine, image_size=size, trust=trust) as engine:
        return {
            place: predict(engine, pictures[place][0], record.text, strict=False) > 0
            for place, record in records.items()
        }


def _picture(dataset: ReferDataset, index: int) -> tuple[Image.Image, np.ndarray]:
    expression = dataset[index]
    return dataset.image(expression), dataset.mask(expression) > 0


def _shown(picture: Image.Image, label: str, alt: str, iou: str = "") -> Picture:
    small = inline(picture)
    return Picture(small.uri, small.width, small.height, alt, label, iou)
