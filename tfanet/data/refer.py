"""Reader of RefCOCO, RefCOCO+ and G-Ref as the REFER API lays them out (Yu et al. 2016, Mao et al. 2016).

    <root>/<dataset>/instances.json          images, annotations and categories, as in COCO
    <root>/<dataset>/refs(<split_by>).p      a pickled list of references with their sentences
    <root>/images/mscoco/images/train2014/   the pictures; images/train2014 and train2014 serve too

A pickle can run code when it is loaded, and these files travel from hand to hand: this reader accepts plain
lists, dictionaries, strings and numbers only.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tfanet.data.images import open_image
from tfanet.data.masks import segmentation_to_mask
from tfanet.errors import UserError
from tfanet.files import require_file

DATASETS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
_IMAGE_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014")


@dataclass(frozen=True)
class Expression:
    """One sample: a sentence, the object it means (`ann_id`) and the picture (`height` x `width` pixels)."""

    ref_id: int
    ann_id: int
    image_id: int
    sent_id: int
    sentence: str
    image_path: Path
    height: int
    width: int
    category: str


class ReferDataset:
    """The sentences of one split; item i is an `Expression`, in the order of the refs file.

    `dataset` is one of `DATASETS`; `split_by` names the refs file (unc for RefCOCO and RefCOCO+, umd or
    google for G-Ref) and defaults to the usual one, or to the only one there is. Raises `UserError` where a
    file is missing or damaged, a refs pickle asks for code, or the split does not exist.
    """

    def __init__(
        self, root: str | Path, dataset: str = "refcoco", split: str = "val", split_by: str | None = None
    ) -> None:
        if dataset not in DATASETS:
            raise UserError(f"unknown data set {dataset!r}; known: {', '.join(DATASETS)}")
        self.root, self.dataset, self.split = Path(root), dataset, split
        refs_path, self._instances_path, self.image_folder = _find_files(self.root, dataset, split_by)
        refs = _load_refs(refs_path)
        chosen = [ref for ref in refs if _in_split(ref["split"], split)]
        if not chosen:
            known = ", ".join(sorted({ref["split"] for ref in refs})) or "none"
            raise UserError(f"{refs_path} has no split {split!r}; its splits: {known}")
        instances = _load_instances(self._instances_path)
        self._expressions = [
            expression
            for ref in chosen
            for expression in _expressions(ref, instances, self.image_folder, refs_path)
        ]
        used = {expression.ann_id for expression in self._expressions}
        self._segmentations = {ann_id: instances.annotations[ann_id]["segmentation"] for ann_id in used}
        kind = {
            ann_id: (entry["image_id"], entry["category_id"])
            for ann_id, entry in instances.annotations.items()
        }
        alike = Counter(kind.values())
        self._distractors = {ann_id: alike[kind[ann_id]] - 1 for ann_id in used}

    def __len__(self) -> int:
        return len(self._expressions)

    def __getitem__(self, index: int) -> Expression:
        return self._expressions[index]

    def __iter__(self) -> Iterator[Expression]:
        return iter(self._expressions)

    @cached_property
    def image_ids(self) -> list[int]:
        """The ids of this split's pictures, each once, ascending."""
        return sorted({expression.image_id for expression in self._expressions})

    def image(self, expression: Expression) -> Image.Image:
        """The expression's picture, RGB; `UserError` when the file is missing, damaged or of another size."""
        picture = open_image(expression.image_path, upright=False)
        if picture.size != (expression.width, expression.height):
            raise UserError(
                f"image {expression.image_path} is {picture.width} x {picture.height} pixels, "
                f"{self._instances_path} says {expression.width} x {expression.height}"
            )
        return picture

    def distractors(self, expression: Expression) -> int:
        """How many other annotated objects of the same category the picture has."""
        return self._distractors[expression.ann_id]

    def mask(self, expression: Expression) -> np.ndarray:
        """The object's pixels, uint8 `[height, width]` in {0, 1}; overlapping parts are a union."""
        segmentation = self._segmentations[expression.ann_id]
        try:
            return segmentation_to_mask(segmentation, expression.height, expression.width)
        except UserError as error:
            raise UserError(f"{self._instances_path}, annotation {expression.ann_id}: {error}") from error


def _find_files(root: Path, dataset: str, split_by: str | None) -> tuple[Path, Path, Path]:
    """The refs file, the instances file and the picture folder."""
    folder = root / dataset
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; {root} must hold {dataset}/instances.json, "
            f"{dataset}/refs({DATASETS[dataset]}).p and {_IMAGE_FOLDERS[0]}"
        )
    refs_path = folder / f"refs({split_by or DATASETS[dataset]}).p"
    if split_by is None and not refs_path.is_file():
        others = sorted(folder.glob("refs(*).p"))
        refs_path = others[0] if len(others) == 1 else refs_path
    image_folder = next((root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()), None)
    if image_folder is None:
        raise UserError(f"{root} has no picture folder; expected one of {', '.join(_IMAGE_FOLDERS)}")
    require_file(refs_path, "refs file")
    return refs_path, require_file(folder / "instances.json", "instances file"), image_folder


def _in_split(name: str, split: str) -> bool:
    """REFER's rule: testA takes every test split with an A in its name, `test` every test split."""
    if split in ("testA", "testB", "testC"):
        return name.startswith("test") and split[-1] in name[4:]
    return name.startswith("test") if split == "test" else name == split


class _PlainUnpickler(pickle.Unpickler):
    """Loads what the pickle opcodes build themselves; nothing that has to be imported."""

    def find_class(self, module: str, name: str) -> Any:
        raise UserError(f"asks for {module}.{name}; a refs file holds plain lists, texts and numbers only")


def _load_refs(path: Path) -> list[dict[str, Any]]:
    """The list of references; strings of Python 2 pickles are read as UTF-8."""
    try:
        with path.open("rb") as file:
            refs = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except UserError as error:
        raise UserError(f"refs file {path} is not safe to load: it {error}") from error
    except (pickle.UnpicklingError, EOFError, OSError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"refs file {path} is damaged or no pickle: {error}") from error
    except (AttributeError, ImportError, MemoryError, OverflowError, RecursionError) as error:
        raise UserError(f"refs file {path} is damaged or no pickle: {type(error).__name__}") from error
    if not isinstance(refs, list):
        raise UserError(f"refs file {path} holds a {type(refs).__name__}, not a list of references")
    for place, ref in enumerate(refs):
        _check_ref(ref, f"refs file {path}, reference {place}")
    return refs


def _check_ref(ref: Any, where: str) -> None:
    fields = {"ref_id": int, "ann_id": int, "image_id": int, "split": str, "sentences": list}
    _check_fields(ref, fields, where)
    for sentence in ref["sentences"]:
        _check_fields(sentence, {"sent_id": int}, f"{where}, sentence")
        if not isinstance(sentence.get("sent", sentence.get("raw")), str):
            raise UserError(f"{where}: a sentence has neither the text `sent` nor `raw`")


def _check_fields(entry: Any, fields: dict[str, type], where: str) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is a {type(entry).__name__}, not a dictionary")
    for name, kind in fields.items():
        if name not in entry:
            raise UserError(f"{where} has no {name!r}")
        if not isinstance(entry[name], kind):
            raise UserError(f"{where}: {name!r} is a {type(entry[name]).__name__}, not a {kind.__name__}")


@dataclass(frozen=True)
class _Instances:
    """Images, annotations and category names by their ids."""

    images: dict[int, dict[str, Any]]
    annotations: dict[int, dict[str, Any]]
    categories: dict[int, str]


def _load_instances(path: Path) -> _Instances:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read instances file {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"instances file {path} is damaged or no JSON: {error}") from error
    wanted: dict[str, dict[str, type]] = {
        "images": {"id": int, "file_name": str, "height": int, "width": int},
        "annotations": {"id": int, "image_id": int, "category_id": int, "segmentation": object},
        "categories": {"id": int, "name": str},
    }
    _check_fields(content, dict.fromkeys(wanted, list), f"instances file {path}")
    for kind, fields in wanted.items():
        for place, entry in enumerate(content[kind]):
            _check_fields(entry, fields, f"instances file {path}, {kind}[{place}]")
    return _Instances(
        images={entry["id"]: entry for entry in content["images"]},
        annotations={entry["id"]: entry for entry in content["annotations"]},
        categories={entry["id"]: entry["name"] for entry in content["categories"]},
    )


def _expressions(
    ref: dict[str, Any], instances: _Instances, image_folder: Path, refs_path: Path
) -> Iterator[Expression]:
    image = instances.images.get(ref["image_id"])
    annotation = instances.annotations.get(ref["ann_id"])
    if image is None or annotation is None:
        what = f"image {ref['image_id']}" if image is None else f"annotation {ref['ann_id']}"
        raise UserError(f"{refs_path}: reference {ref['ref_id']} needs {what}, absent from instances.json")
    for sentence in ref["sentences"]:
        yield Expression(
            ref_id=ref["ref_id"],
            ann_id=ref["ann_id"],
            image_id=ref["image_id"],
            sent_id=sentence["sent_id"],
            sentence=sentence.get("sent", sentence.get("raw")),
            image_path=image_folder / image["file_name"],
            height=image["height"],
            width=image["width"],
            category=instances.categories.get(annotation["category_id"], "unknown"),
        )
