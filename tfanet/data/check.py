"""`tfanet-data check`: finds the faults of a data set before the first training step.

The published counts of each split are those of REFER's files (Yu et al., 2016; Mao et al., 2016).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfanet.console import note, track
from tfanet.data.images import image_size, open_image
from tfanet.data.masks import segmentation_area
from tfanet.data.refer import (
    DATASETS,
    IMAGE_FOLDERS,
    Expression,
    Ref,
    ReferFiles,
    Sentence,
    require_size,
    sentence_text,
)
from tfanet.data.shapes import RECORD
from tfanet.errors import UserError

EXAMPLES = 3
"""Examples kept of each kind of fault."""
_SPLITS = ("train", "val", "testA", "testB", "test")
_PUBLISHED: dict[tuple[str, str], dict[str, tuple[int, int, int]]] = {
    ("refcoco", "unc"): {
        "train": (42404, 120624, 16994),
        "val": (3811, 10834, 1500),
        "testA": (1975, 5657, 750),
        "testB": (1810, 5095, 750),
    },
    ("refcoco+", "unc"): {
        "train": (42278, 120191, 16992),
        "val": (3805, 10758, 1500),
        "testA": (1975, 5726, 750),
        "testB": (1798, 4889, 750),
    },
    ("refcocog", "umd"): {
        "train": (42226, 80512, 21899),
        "val": (2573, 4896, 1300),
        "test": (5023, 9602, 2600),
    },
    ("refcocog", "google"): {"train": (44822, 85474, 24698), "val": (5000, 9536, 4650)},
}
_COUNTS = {"references": "references", "expressions": "expressions", "pictures": "images"}
"""The counts of a split, by their keys in the JSON report, with their names in messages."""
_MARGIN = 1.0
"""Pixels by which a polygon may exceed its image: COCO's touch the border."""


@dataclass
class Finding:
    """One kind of fault: its description, how often it occurs, and the first few cases."""

    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    problem: bool = True
    """False for faults of real data sets that training tolerates."""

    def line(self) -> str:
        """The finding in one line."""
        more = "; ..." if self.count > len(self.examples) else ""
        return f"{self.kind} ({self.count}): {'; '.join(self.examples)}{more}"


@dataclass
class Report:
    """The counts of each split of a data set, and its faults."""

    dataset: str
    wanted: str
    """The requested `split_by`, or the default."""
    split_by: str | None = None
    """None if the files could not be read."""
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    """By split, the number of references, expressions and images (key "pictures")."""
    expected: dict[str, dict[str, int]] = field(default_factory=dict)
    """The published counts, or those that a synthetic data set was made with, if known."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.problem]

    def add(self, kind: str, cases: Iterable[str], *, problem: bool = True) -> None:
        """Add a finding if there are any cases."""
        finding = Finding(kind, problem=problem)
        for case in cases:
            finding.count += 1
            finding.examples += [case] if finding.count <= EXAMPLES else []
        if finding.count:
            self.findings.append(finding)


def check(
    root: Path,
    datasets: Sequence[str] = (),
    split_by: str | None = None,
    *,
    token_length: int | None = None,
    decode: bool = False,
    own: bool = False,
) -> list[Report]:
    """A report on each of `datasets` below `root`; on all present if empty.

    Args:
        token_length: None is 22 for G-Ref and 17 for the others.
        decode: read every image instead of its header only.
        own: compare the counts with no published ones.

    Raises `UserError` if `root` is not a folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; docs/data.md describes its layout")
    present = [name for name in DATASETS if (root / name).is_dir()]
    return [
        _check_one(root, name, split_by, token_length or (22 if name == "refcocog" else 17), decode, own)
        for name in datasets or present or ["refcoco"]
    ]


def lines(report: Report) -> Iterator[str]:
    """The report in lines to print: a table of the splits, the findings, and where to get missing files."""
    if report.split_by is None:
        yield f"{report.dataset}"
    else:
        yield f"{report.dataset}, split by {report.split_by}"
        yield f"{'split':<8}" + "".join(f"{name:>13}" for name in _COUNTS.values()) + f"{'expected':>26}"
    for split, counts in report.splits.items():
        known = report.expected.get(split, {})
        expected = " / ".join(str(known.get(name, "-")) for name in _COUNTS) if known else "-"
        yield f"{split:<8}" + "".join(f"{counts[name]:>13}" for name in _COUNTS) + f"{expected:>26}"
    for finding in report.findings:
        yield f"{'problem' if finding.problem else 'note'}: {finding.line()}"
    if report.split_by is None:
        name = report.dataset
        yield f"needed: {name}/instances.json and {name}/refs({report.wanted}).p, from REFER's {name}.zip"
        yield f"and in {IMAGE_FOLDERS[0]} the images of COCO's train2014.zip"
        yield "docs/data.md describes where to get them"
    elif not report.problems:
        yield "no problems"


def _check_one(
    root: Path, dataset: str, split_by: str | None, token_length: int, decode: bool, own: bool
) -> Report:
    report = Report(dataset, split_by or DATASETS.get(dataset, ""))
    try:
        files = ReferFiles.load(root, dataset, split_by)
    except UserError as error:
        if dataset not in DATASETS:
            raise
        report.add("files missing or damaged", [str(error)])
        return report
    report.split_by = files.split_by
    refs = [ref for ref in files.refs if files.fault(ref) is None]
    _check_ids(report, files)
    _check_counts(report, files, {} if own else _expected(root, files))
    _check_expressions(report, files, token_length)
    _check_shared_images(report, files, refs)
    _check_masks(report, files, sorted({ref["ann_id"] for ref in refs}))
    _check_images(report, files, sorted({ref["image_id"] for ref in refs}), decode)
    return report


def _check_ids(report: Report, files: ReferFiles) -> None:
    report.add("references whose ids do not match", filter(None, map(files.fault, files.refs)))
    names = {"images": "image ids", "annotations": "annotation ids", "categories": "category ids"}
    listed = {name: [entry["id"] for entry in files.instances[kind]] for kind, name in names.items()}
    listed["reference ids"] = [ref["ref_id"] for ref in files.refs]
    listed["sentence ids"] = [sentence["sent_id"] for _, sentence in _sentences(files)]
    listed["image files"] = [entry["file_name"] for entry in files.images.values()]
    for what, ids in listed.items():
        repeated = ((name, count) for name, count in Counter(ids).items() if count > 1)
        report.add(f"{what} given more than once", (f"{name} ({count} times)" for name, count in repeated))
    unknown = (
        f"annotation {entry['id']} of category {entry['category_id']}"
        for entry in files.annotations.values()
        if entry["category_id"] not in files.categories
    )
    report.add("annotations with an unknown category", unknown)


def _sentences(files: ReferFiles) -> Iterator[tuple[Ref, Sentence]]:
    return ((ref, sentence) for ref in files.refs for sentence in ref["sentences"])


def _expected(root: Path, files: ReferFiles) -> dict[str, dict[str, int]]:
    """The known counts of each split: from the record of a synthetic data set, else the published ones."""
    if (root / RECORD).is_file():
        try:
            record = json.loads((root / RECORD).read_text(encoding="utf-8"))
            if record["dataset"] != files.dataset:
                return {}
            return {split: {"pictures": int(count)} for split, count in record["counts"].items() if count}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{root / RECORD} is damaged: {error!r}; make the data set again with --force"
            ) from error
    published = _PUBLISHED.get((files.dataset, files.split_by), {})
    return {split: dict(zip(_COUNTS, counts, strict=True)) for split, counts in published.items()}


def _check_counts(report: Report, files: ReferFiles, expected: dict[str, dict[str, int]]) -> None:
    names = {ref["split"] for ref in files.refs} | set(expected)
    for split in sorted(names, key=lambda name: (_SPLITS.index(name) if name in _SPLITS else 9, name)):
        refs = [ref for ref in files.refs if ref["split"] == split]
        sentences = sum(len(ref["sentences"]) for ref in refs)
        images = len({ref["image_id"] for ref in refs})
        report.splits[split] = dict(zip(_COUNTS, (len(refs), sentences, images), strict=True))
    report.expected = expected
    wrong = (
        f"{split} has {report.splits[split][what]} {_COUNTS[what]} instead of {count}"
        for split, counts in expected.items()
        for what, count in counts.items()
        if report.splits[split][what] != count
    )
    report.add("unexpected counts", wrong)


def _check_expressions(report: Report, files: ReferFiles, token_length: int) -> None:
    from tfanet.data.preprocess import token_counts

    without = (f"reference {ref['ref_id']}" for ref in files.refs if not ref["sentences"])
    report.add("references without an expression", without)
    texts = [(ref, sentence, sentence_text(sentence)) for ref, sentence in _sentences(files)]
    counted = list(zip(texts, token_counts(text for *_, text in texts), strict=True))
    empty = (
        f"sentence {sentence['sent_id']} of reference {ref['ref_id']}"
        for (ref, sentence, _), tokens in counted
        if tokens == 2
    )
    report.add("expressions without a word", empty)
    long = (f"{text!r:.90} ({tokens})" for (*_, text), tokens in counted if tokens > token_length)
    report.add(f"expressions of more than {token_length} tokens, which are truncated", long, problem=False)


def _check_shared_images(report: Report, files: ReferFiles, refs: list[Ref]) -> None:
    images: dict[str, dict[str, None]] = {}
    for ref in refs:
        images.setdefault(ref["split"], {})[files.images[ref["image_id"]]["file_name"]] = None
    report.add(
        "images in train and in another split",
        (
            f"{name} in {split}"
            for split, names in images.items()
            if split != "train"
            for name in names
            if name in images.get("train", {})
        ),
        # Google's split divides the objects, not the images.
        problem=files.split_by != "google",
    )


def _check_masks(report: Report, files: ReferFiles, ann_ids: list[int]) -> None:
    unreadable, empty, outside = [], [], []
    for ann_id in track(ann_ids, f"{files.dataset}: masks", total=len(ann_ids)):
        entry = files.annotations[ann_id]
        image, segmentation = files.images[entry["image_id"]], entry["segmentation"]
        try:
            area = segmentation_area(segmentation, image["height"], image["width"])
        except UserError as error:
            unreadable.append(f"annotation {ann_id}: {error}")
            continue
        if excess := _excess(segmentation, image["height"], image["width"]):
            outside.append(f"annotation {ann_id} by {excess:.1f} pixels")
        if not area:
            empty.append(f"annotation {ann_id}")
    report.add("unreadable masks", unreadable)
    report.add("empty masks", empty)
    report.add("masks whose polygons exceed the image", outside)


def _excess(segmentation: Any, height: int, width: int) -> float:
    """Pixels by which polygons exceed the image; 0 within the margin, and for RLEs, which cannot."""
    if not isinstance(segmentation, list):
        return 0.0
    polygons = [polygon for polygon in segmentation if isinstance(polygon, list) and polygon]
    excesses = (
        max(-min(polygon), max(polygon[::2]) - width, max(polygon[1::2]) - height) for polygon in polygons
    )
    excess = max(excesses, default=0.0)
    return excess if excess > _MARGIN else 0.0


def _check_images(report: Report, files: ReferFiles, image_ids: list[int], decode: bool) -> None:
    paths = {image_id: files.image_path(image_id) for image_id in image_ids}
    missing = missing_files(paths.values())
    report.add("missing images", (str(path) for path in paths.values() if path in missing))

    def fault(image_id: int) -> str | None:
        path, entry = paths[image_id], files.images[image_id]
        try:
            size = open_image(path, upright=False).size if decode else image_size(path)
            require_size(path, size, (entry["width"], entry["height"]), files.instances_path)
        except UserError as error:
            return str(error)
        return None

    present = [image_id for image_id, path in paths.items() if path not in missing]
    what = f"{files.dataset}: {'images' if decode else 'image headers'}"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = [text for text in track(pool.map(fault, present), what, total=len(present)) if text]
    report.add("images unreadable or of another size", faults)


def missing_files(paths: Iterable[Path]) -> set[Path]:
    """The missing ones of `paths`; each folder is listed once, faster than one stat call per file."""
    expected = set(paths)
    names: dict[Path, set[str]] = {}
    for folder in {path.parent for path in expected}:
        try:
            with os.scandir(folder) as entries:
                names[folder] = {entry.name for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            names[folder] = set()
        except OSError as error:
            raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    return {path for path in expected if path.name not in names[path.parent]}


def require_images(
    splits: Mapping[str, Sequence[Expression]], skip_broken: int, *, verbose: bool = True
) -> None:
    """Check before training that the images of these expressions exist.

    If `verbose`, prints one line per split with missing images. Raises `UserError` unless they are of `train`
    only and of at most `skip_broken` expressions: training skips those, validation needs all.
    """
    missing = missing_files(pair.image_path for pairs in splits.values() for pair in pairs)
    fatal = []
    for split, pairs in splits.items():
        lacking = [pair for pair in pairs if pair.image_path in missing]
        names = list(dict.fromkeys(str(pair.image_path) for pair in lacking))
        if names:
            more = "; ..." if len(names) > EXAMPLES else ""
            what = f"({len(names)}, of {len(lacking)} expressions)"
            if verbose:
                note(f"{split}: images missing {what}: {'; '.join(names[:EXAMPLES])}{more}")
            if split != "train" or len(lacking) > skip_broken:
                fatal.append(f"{split} {what}")
    if fatal:
        raise UserError(
            f"images are missing: {', '.join(fatal)}; see tfanet-data check (--skip-broken is for train)"
        )
