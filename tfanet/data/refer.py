"""Reader of RefCOCO, RefCOCO+ and G-Ref as the REFER API lays them out (Yu et al. 2016, Mao et al. 2016).

    <root>/<dataset>/instances.json          images, annotations and categories, as in COCO
    <root>/<dataset>/refs(<split_by>).p      a pickled list of references with their expressions ("sentences")
    <root>/images/mscoco/images/train2014/   the images; images/train2014 and train2014 work too

A pickle can run code when it is loaded, and these files come from the internet: this reader accepts plain
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
from typing import Any, NotRequired

import numpy as np
from PIL import Image
from typing_extensions import TypedDict

from tfanet.data.images import open_image
from tfanet.data.masks import segmentation_to_mask
from tfanet.deprecation import renamed_property
from tfanet.errors import UserError
from tfanet.files import require_file
from tfanet.validation import check_values

DATASETS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""The data sets, and the default `split_by` of each."""
IMAGE_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014")
_TEST_SPLITS = ("testA", "testB", "test")


class Sentence(TypedDict):
    """An expression in the refs file; at least one of `sent` and `raw` is present."""

    sent_id: int
    sent: NotRequired[str]
    """The cleaned text."""
    raw: NotRequired[Any]
    """The text as written; a string where there is no `sent`."""


class Ref(TypedDict):
    """A reference in the refs file: an object and its expressions. Other fields are ignored."""

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: list[Sentence]
    level: NotRequired[Any]
    """Language level of a synthetic data set (`tfanet.data.scene.LEVELS`)."""


class ImageEntry(TypedDict):
    """An image in instances.json; its size is in pixels."""

    id: int
    file_name: str
    height: int
    width: int


class Annotation(TypedDict):
    """An annotated object in instances.json; see `tfanet.data.masks` for `segmentation`."""

    id: int
    image_id: int
    category_id: int
    segmentation: Any


class Category(TypedDict):
    """An object category in instances.json."""

    id: int
    name: str


class Instances(TypedDict):
    """instances.json. If several entries have one id, the last one counts. Other fields are ignored."""

    images: list[ImageEntry]
    annotations: list[Annotation]
    categories: list[Category]


def splits_of(dataset: str) -> tuple[str, ...]:
    """The splits of `refcoco`, `refcoco+` or `refcocog`. Raises `UserError` for another name."""
    require_dataset(dataset)
    return ("train", "val", "test") if dataset == "refcocog" else ("train", "val", "testA", "testB")


def require_dataset(dataset: str) -> None:
    """Raises `UserError` unless `dataset` is one of `DATASETS`."""
    if dataset not in DATASETS:
        raise UserError(f"unknown data set {dataset!r}; known: {', '.join(DATASETS)}")


def usual_split_by(root: str | Path, dataset: str) -> str:
    """The default `split_by` of a data set below `root`: that of `DATASETS`, or the only one present.

    Raises `KeyError` for an unknown `dataset`.
    """
    folder, default = Path(root) / dataset, DATASETS[dataset]
    if (folder / _refs_name(default)).is_file():
        return default
    others = list(folder.glob(_refs_name("*")))
    return _split_by(others[0]) if len(others) == 1 else default


def data_name(dataset: str, split_by: str) -> str:
    """For titles: `refcocog`, or `refcocog (google)` if `split_by` is not the default."""
    return dataset if split_by == DATASETS.get(dataset) else f"{dataset} ({split_by})"


def data_options(dataset: str, split_by: str) -> list[str]:
    """The options of a command that reads this data set; without `--split-by` if it is the default."""
    return ["--dataset", dataset] + (["--split-by", split_by] if split_by != DATASETS[dataset] else [])


@dataclass(frozen=True)
class Expression:
    """One sample: a referring expression, its object (`ann_id`) and the image (`height` x `width` pixels)."""

    ref_id: int
    ann_id: int
    image_id: int
    sent_id: int
    text: str
    image_path: Path
    height: int
    width: int
    category: str
    level: str | None = None
    """Language level of a synthetic data set (`tfanet.data.scene.LEVELS`); None for others."""

    sentence = renamed_property("sentence", "text")


@dataclass(frozen=True)
class ReferFiles:
    """The files of a data set, read once for all its splits; see `load`."""

    dataset: str
    refs_path: Path
    instances_path: Path
    image_folder: Path
    refs: list[Ref]
    instances: Instances

    @classmethod
    def load(cls, root: str | Path, dataset: str = "refcoco", split_by: str | None = None) -> ReferFiles:
        """Read the files below `root`.

        `dataset` is one of `DATASETS`; `split_by` names the refs file (unc for RefCOCO and RefCOCO+, umd or
        google for G-Ref) and defaults to `usual_split_by`. Raises `UserError` if a file is missing or
        damaged, or if a refs pickle would run code.
        """
        require_dataset(dataset)
        refs_path, instances_path, image_folder = _find_files(Path(root), dataset, split_by)
        refs, instances = _load_refs(refs_path), _load_instances(instances_path)
        return cls(dataset, refs_path, instances_path, image_folder, refs, instances)

    @property
    def split_by(self) -> str:
        """The part in parentheses of the refs file's name."""
        return _split_by(self.refs_path)

    @property
    def held_out(self) -> tuple[str, ...]:
        """The splits to validate and test on, `val` first: those of `splits_of`.

        If `split_by` is not the default: `val`, and the test splits in the refs file.
        """
        if self.split_by == DATASETS[self.dataset]:
            return splits_of(self.dataset)[1:]
        present = {ref["split"] for ref in self.refs}
        return ("val", *(split for split in _TEST_SPLITS if split in present))

    @cached_property
    def images(self) -> dict[int, ImageEntry]:
        return {entry["id"]: entry for entry in self.instances["images"]}

    @cached_property
    def annotations(self) -> dict[int, Annotation]:
        return {entry["id"]: entry for entry in self.instances["annotations"]}

    @cached_property
    def categories(self) -> dict[int, str]:
        return {entry["id"]: entry["name"] for entry in self.instances["categories"]}

    def fault(self, ref: Ref) -> str | None:
        """What is wrong with the ids of a reference; None if they belong to one image and its annotation."""
        name = f"reference {ref['ref_id']}"
        if ref["image_id"] not in self.images:
            return f"{name} needs image {ref['image_id']}, absent from instances.json"
        if ref["ann_id"] not in self.annotations:
            return f"{name} needs annotation {ref['ann_id']}, absent from instances.json"
        other = self.annotations[ref["ann_id"]]["image_id"]
        if other != ref["image_id"]:
            return f"{name} is of image {ref['image_id']}, its annotation {ref['ann_id']} of image {other}"
        return None

    def image_path(self, image_id: int) -> Path:
        """The expected path of an image."""
        return self.image_folder / self.images[image_id]["file_name"]


class ReferDataset:
    """The expressions of one split; item i is an `Expression`, in the order of the refs file.

    See `ReferFiles.load` for `dataset` and `split_by`. Raises `UserError` as that does, and if the split does
    not exist or the ids of a reference do not match.
    """

    def __init__(
        self, root: str | Path, dataset: str = "refcoco", split: str = "val", split_by: str | None = None
    ) -> None:
        self._choose(ReferFiles.load(root, dataset, split_by), split)

    @classmethod
    def of(cls, files: ReferFiles, split: str | None) -> ReferDataset:
        """A split of `files`; all references if `split` is None."""
        dataset = cls.__new__(cls)
        dataset._choose(files, split)
        return dataset

    def _choose(self, files: ReferFiles, split: str | None) -> None:
        self.dataset, self.split_by, self.split = files.dataset, files.split_by, split or "all"
        self.image_folder, self._instances_path = files.image_folder, files.instances_path
        chosen = [ref for ref in files.refs if _in_split(ref["split"], split)]
        if not chosen:
            known = ", ".join(sorted({ref["split"] for ref in files.refs})) or "none"
            raise UserError(f"{files.refs_path} has no split {split!r}; its splits: {known}")
        self._expressions = [expression for ref in chosen for expression in _expressions(ref, files)]
        used = {expression.ann_id for expression in self._expressions}
        self._segmentations = {ann_id: files.annotations[ann_id]["segmentation"] for ann_id in used}
        image_and_category = {
            ann_id: (entry["image_id"], entry["category_id"]) for ann_id, entry in files.annotations.items()
        }
        counts = Counter(image_and_category.values())
        self._distractors = {ann_id: counts[image_and_category[ann_id]] - 1 for ann_id in used}

    def __len__(self) -> int:
        return len(self._expressions)

    def __getitem__(self, index: int) -> Expression:
        return self._expressions[index]

    def __iter__(self) -> Iterator[Expression]:
        return iter(self._expressions)

    @cached_property
    def image_ids(self) -> list[int]:
        """The ids of this split's images, each once, ascending."""
        return sorted({expression.image_id for expression in self._expressions})

    def image(self, expression: Expression) -> Image.Image:
        """The expression's RGB image. Raises `UserError` if it is missing, damaged or of another size."""
        image = open_image(expression.image_path, upright=False)
        expected = expression.width, expression.height
        require_size(expression.image_path, image.size, expected, self._instances_path)
        return image

    def distractors(self, expression: Expression) -> int:
        """How many other annotated objects of the same category the image has."""
        return self._distractors[expression.ann_id]

    def mask(self, expression: Expression) -> np.ndarray:
        """The object's mask, uint8 `[height, width]` in {0, 1}: the union of its parts."""
        segmentation = self._segmentations[expression.ann_id]
        try:
            return segmentation_to_mask(segmentation, expression.height, expression.width)
        except UserError as error:
            raise UserError(f"{self._instances_path}, annotation {expression.ann_id}: {error}") from error


def require_size(path: Path, size: tuple[int, int], expected: tuple[int, int], instances_path: Path) -> None:
    """Raises `UserError` unless the image's width and height in pixels are those of the instances file."""
    if size != expected:
        raise UserError(
            f"image {path} is {size[0]} x {size[1]} pixels, "
            f"{instances_path} says {expected[0]} x {expected[1]}"
        )


def _find_files(root: Path, dataset: str, split_by: str | None) -> tuple[Path, Path, Path]:
    """The refs file, the instances file and the image folder."""
    folder = root / dataset
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; {root} must contain {dataset}/instances.json, "
            f"{dataset}/{_refs_name(split_by or DATASETS[dataset])} and {IMAGE_FOLDERS[0]}"
        )
    refs_path = folder / _refs_name(split_by or usual_split_by(root, dataset))
    image_folder = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None)
    if image_folder is None:
        raise UserError(f"{root} has no image folder; expected one of {', '.join(IMAGE_FOLDERS)}")
    require_file(refs_path, "refs file")
    return refs_path, require_file(folder / "instances.json", "instances file"), image_folder


def _refs_name(split_by: str) -> str:
    return f"refs({split_by}).p"


def _split_by(refs_path: Path) -> str:
    return refs_path.name.removeprefix("refs(").removesuffix(").p")


def _in_split(name: str, split: str | None) -> bool:
    """REFER's rule: testA is every test split with an A in its name, `test` is every test split."""
    if split in ("testA", "testB", "testC"):
        return name.startswith("test") and split[-1] in name[4:]
    return name.startswith("test") if split == "test" else split in (name, None)


class _PlainUnpickler(pickle.Unpickler):
    """Loads builtin containers, strings and numbers only: nothing that has to be imported."""

    def find_class(self, module: str, name: str) -> Any:
        raise UserError(f"imports {module}.{name}; it may contain plain lists, strings and numbers only")


def _load_refs(path: Path) -> list[Ref]:
    """The list of references; strings of Python 2 pickles are read as UTF-8."""
    try:
        with path.open("rb") as file:
            refs = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except UserError as error:
        raise UserError(f"refs file {path} is not safe to load: it {error}") from error
    except (pickle.UnpicklingError, EOFError, OSError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"refs file {path} is damaged or not a pickle: {error}") from error
    except (AttributeError, ImportError, MemoryError, OverflowError, RecursionError) as error:
        raise UserError(f"refs file {path} is damaged or not a pickle: {type(error).__name__}") from error
    refs = check_values(list[Ref], refs, f"refs file {path}")
    for i, ref in enumerate(refs):
        if not all("sent" in s or isinstance(s.get("raw"), str) for s in ref["sentences"]):
            raise UserError(f"refs file {path} is invalid: [{i}]: a sentence has neither `sent` nor `raw`")
    return refs


def _load_instances(path: Path) -> Instances:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read instances file {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"instances file {path} is invalid: {error}") from error
    # Not `from_json`, which takes twice the memory for large files.
    instances = check_values(Instances, content, f"instances file {path}")
    for i, image in enumerate(instances["images"]):
        if min(image["height"], image["width"]) < 1:
            size = f"{image['width']} x {image['height']}"
            raise UserError(f"instances file {path} is invalid: images[{i}] has a size of {size} pixels")
    return instances


def _expressions(ref: Ref, files: ReferFiles) -> Iterator[Expression]:
    if fault := files.fault(ref):
        raise UserError(f"{files.refs_path}: {fault}")
    image, annotation = files.images[ref["image_id"]], files.annotations[ref["ann_id"]]
    for sentence in ref["sentences"]:
        yield Expression(
            ref_id=ref["ref_id"],
            ann_id=ref["ann_id"],
            image_id=ref["image_id"],
            sent_id=sentence["sent_id"],
            text=sentence_text(sentence),
            image_path=files.image_path(ref["image_id"]),
            height=image["height"],
            width=image["width"],
            category=files.categories.get(annotation["category_id"], "unknown"),
            level=level if isinstance(level := ref.get("level"), str) else None,
        )


def sentence_text(sentence: Sentence) -> str:
    """The cleaned text of a sentence of the refs file, or the raw text if there is no other."""
    return sentence["sent"] if "sent" in sentence else sentence.get("raw", "")
