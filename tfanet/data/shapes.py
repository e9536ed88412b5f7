"""A synthetic RefCOCO on disk: drawn scenes, their masks, and expressions that fit exactly one object.

The folder has the layout of the REFER API, so every reader of RefCOCO can read it. Image i of a split depends
on the seed, the split, i and the language levels only, not on the number of images.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tfanet.console import track
from tfanet.data.draw import draw_scene, jpeg
from tfanet.data.language import Description, describe
from tfanet.data.masks import polygons_to_mask
from tfanet.data.refer import DATASETS, splits_of
from tfanet.data.scene import DEFAULT_LEVELS, LEVELS, SHAPES, Scene, SceneObject, sample_scene
from tfanet.errors import UserError

DEFAULT_ROOT = Path("data/shapes")
RECORD = "shapes.json"

_VERSION = 2
_SPLITS = {"train": 0, "val": 1, "testA": 2, "testB": 3, "test": 4}
_REFERENT_SHAPES = {"testA": ("circle", "square", "triangle"), "testB": ("star", "cross", "heart")}
_IMAGES = Path("images/mscoco/images/train2014")


@dataclass(frozen=True)
class Referent:
    """One referred object: its index in the scene and 1 to 3 descriptions with their expressions."""

    index: int
    expressions: tuple[tuple[Description, str], ...]


@dataclass(frozen=True)
class Sample:
    """One image before it is written: language level, scene, JPEG bytes, the referred objects."""

    level: str
    scene: Scene
    jpeg: bytes
    referents: tuple[Referent, ...]


def default_counts(dataset: str = "refcoco") -> dict[str, int]:
    """Images per split: 6000 in train, 300 in each other."""
    return {split: 6000 if split == "train" else 300 for split in splits_of(dataset)}


def make_sample(seed: int, split: str, index: int, levels: Sequence[str] = DEFAULT_LEVELS) -> Sample:
    """Image `index` of a split. `testA` refers to circles, squares and triangles, `testB` to the others."""
    rng = np.random.default_rng([seed, _SPLITS[split], index])
    level = str(rng.choice(_checked_levels(levels)))
    shapes = _REFERENT_SHAPES.get(split, SHAPES)
    scene, expressions = _describable_scene(rng, level, shapes)
    referents = [Referent(0, tuple(expressions))]
    for other in rng.permutation(len(scene.objects)):
        if other == 0 or scene.objects[other].appearance.shape not in shapes:
            continue
        expressions = describe(rng, scene, int(other), level, int(rng.integers(2, 4)))
        if expressions:
            referents.append(Referent(int(other), tuple(expressions)))
            break
    return Sample(level, scene, jpeg(draw_scene(rng, scene)), tuple(referents))


def _describable_scene(
    rng: np.random.Generator, level: str, shapes: Sequence[str]
) -> tuple[Scene, list[tuple[Description, str]]]:
    """A scene whose first object can be described at this level, with its descriptions."""
    while True:
        scene = sample_scene(rng, level, shapes)
        expressions = describe(rng, scene, 0, level, int(rng.integers(2, 4)))
        if expressions:
            return scene, expressions


def _checked_levels(levels: Sequence[str]) -> tuple[str, ...]:
    unknown = sorted(set(levels) - set(LEVELS))
    if unknown or not levels:
        names = ", ".join(unknown) or "(none)"
        raise UserError(f"unknown language level {names}; known: {', '.join(LEVELS)}")
    return tuple(levels)


def render_pair(
    seed: int, index: int, levels: Sequence[str] = DEFAULT_LEVELS, split: str = "val"
) -> tuple[Image.Image, str, np.ndarray]:
    """Image (RGB), expression and mask (uint8 `[H, W]` in {0, 1}) of a split's sample, without writing files.

    Equal to what `write_shapes` writes and `ReferDataset` reads: the first expression of the image's first
    object.
    """
    sample = make_sample(seed, split, index, levels)
    scene, referent = sample.scene, sample.referents[0]
    with Image.open(BytesIO(sample.jpeg)) as stored:
        image = stored.convert("RGB")
    mask = polygons_to_mask([_flat_polygon(scene.objects[referent.index])], scene.height, scene.width)
    return image, referent.expressions[0][1], mask


def ensure_shapes(root: str | Path = DEFAULT_ROOT) -> Path:
    """The folder of the synthetic data set; made with the defaults if it is absent.

    Raises `UserError` if another version of this package made it: metrics would not be comparable.
    """
    root = Path(root)
    if not (root / RECORD).is_file():
        return write_shapes(root)
    if (_record(root) or {}).get("version") != _VERSION:
        raise UserError(
            f"{root} was made by another version of tfanet; make it again: tfanet-data make {root} --force"
        )
    return root


def write_shapes(
    root: str | Path,
    dataset: str = "refcoco",
    levels: Sequence[str] = DEFAULT_LEVELS,
    counts: Mapping[str, int] | None = None,
    seed: int = 0,
    force: bool = False,
) -> Path:
    """Make a synthetic `dataset` in the folder `root` and return `root`.

    `counts` is the number of images per split (`default_counts` if None; an absent split is empty). The
    folder appears only when it is complete. A complete one with the same parameters is kept as it is. Raises
    `UserError` for a folder with other parameters, unless `force` replaces it, or with other content.
    """
    root = Path(root)
    counts = _checked_counts(dataset, default_counts(dataset) if counts is None else counts)
    record = {
        "version": _VERSION,
        "dataset": dataset,
        "levels": list(_checked_levels(levels)),
        "counts": counts,
        "seed": seed,
    }
    if _is_done(root, record, force):
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as temporary:
            new = Path(temporary) / "new"
            _write(new, dataset, levels, counts, seed)
            (new / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            if _is_done(root, record, force):
                return root
            if root.exists():
                root.rename(Path(temporary) / "replaced")
            new.rename(root)
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror or error}") from error
    return root


def _checked_counts(dataset: str, counts: Mapping[str, int]) -> dict[str, int]:
    splits = splits_of(dataset)
    unknown = sorted(set(counts) - set(splits))
    if unknown:
        raise UserError(f"{dataset} has no split {', '.join(unknown)}; its splits: {', '.join(splits)}")
    if any(count < 0 or count >= 1_000_000 for count in counts.values()) or not any(counts.values()):
        raise UserError("the images per split must be from 0 to 999999, and not all 0")
    return {split: int(counts.get(split, 0)) for split in splits}


def _is_done(root: Path, record: dict[str, Any], force: bool) -> bool:
    """Whether `root` contains this data set already. Raises `UserError` if it must not be replaced."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / RECORD).is_file():
        raise UserError(f"{root} exists and is not a synthetic data set; choose another folder")
    if _record(root) == record:
        return True
    if not force:
        raise UserError(
            f"{root} is a synthetic data set with other parameters; choose another folder or add --force"
        )
    return False


def _record(root: Path) -> dict[str, Any] | None:
    """The parameters that the folder's data set was made with; None if they are unreadable."""
    try:
        record = json.loads((root / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _write(root: Path, dataset: str, levels: Sequence[str], counts: dict[str, int], seed: int) -> None:
    (root / dataset).mkdir(parents=True)
    (root / _IMAGES).mkdir(parents=True)
    images, annotations, refs = [], [], []
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    for split, index in track(jobs, "drawing scenes", total=len(jobs)):
        sample = make_sample(seed, split, index, levels)
        image_id = _SPLITS[split] * 1_000_000 + index + 1
        name = f"COCO_train2014_{image_id:012d}.jpg"
        (root / _IMAGES / name).write_bytes(sample.jpeg)
        size = {"height": sample.scene.height, "width": sample.scene.width}
        images.append({"id": image_id, "file_name": name, **size})
        objects = enumerate(sample.scene.objects)
        annotations += [_annotation(obj, image_id, place) for place, obj in objects]
        refs += [_ref(sample, referent, image_id, split) for referent in sample.referents]
    categories = [
        {"id": number, "name": shape, "supercategory": "shape"} for number, shape in enumerate(SHAPES, 1)
    ]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (root / dataset / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    with (root / dataset / f"refs({DATASETS[dataset]}).p").open("wb") as file:
        pickle.dump(refs, file, protocol=2)


def _flat_polygon(obj: SceneObject) -> list[float]:
    return obj.polygon().reshape(-1).tolist()


def _annotation(obj: SceneObject, image_id: int, place: int) -> dict[str, Any]:
    points = obj.polygon()
    low, high = points.min(axis=0), points.max(axis=0)
    following = np.roll(points, -1, axis=0)
    area = abs(float(np.sum(points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]))) / 2
    return {
        "id": image_id * 10 + place,
        "image_id": image_id,
        "category_id": SHAPES.index(obj.appearance.shape) + 1,
        "segmentation": [_flat_polygon(obj)],
        "bbox": [round(float(side), 2) for side in (*low, *(high - low))],
        "area": round(area, 2),
        "iscrowd": 0,
    }


def _ref(sample: Sample, referent: Referent, image_id: int, split: str) -> dict[str, Any]:
    ann_id = image_id * 10 + referent.index
    sentences = [
        {"raw": sentence, "sent": sentence, "sent_id": ann_id * 10 + number, "tokens": sentence.split()}
        for number, (_, sentence) in enumerate(referent.expressions)
    ]
    return {
        "ref_id": ann_id,
        "ann_id": ann_id,
        "category_id": SHAPES.index(sample.scene.objects[referent.index].appearance.shape) + 1,
        "image_id": image_id,
        "split": split,
        "level": sample.level,
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }
