"""A synthetic RefCOCO with the image and file sizes of COCO."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tfanet.console import track

WIDTH, HEIGHT = 640, 480
COCO_QUALITY = 95
"""JPEG quality at which an image has about 160 kB, as in COCO."""
WORDS = ["left", "right", "upper", "small", "red", "blue", "man", "dog", "chair", "with", "behind", "near"]


def write_refcoco(
    root: Path, expressions: Sequence[Sequence[int]], split: str, *, rle_every: int = 0
) -> None:
    """Write images, instances.json and refs(unc).p into `root`.

    Args:
        expressions: for each image the number of expressions of each of its objects.
        rle_every: every so many objects have a run-length code; the others, or all if 0, have 1 or 2
            polygons of about 40 corners.
    """
    from pycocotools import mask

    coco: Any = mask
    folder = root / "train2014"
    folder.mkdir(parents=True)
    (root / "refcoco").mkdir()
    rng = np.random.default_rng(0)
    images, annotations, refs = [], [], []
    sent_ids = iter(range(sum(map(sum, expressions))))
    for image_id, counts in enumerate(track(expressions, "images", len(expressions)), start=1):
        name = f"COCO_train2014_{image_id:012d}.jpg"
        (folder / name).write_bytes(_jpeg(rng))
        images.append({"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for count in counts:
            number = len(refs) + 1
            segmentation: Any = [_polygon(rng) for _ in range(rng.integers(1, 3))]
            if rle_every and number % rle_every == 0:
                rle = coco.merge(coco.frPyObjects(segmentation, HEIGHT, WIDTH))
                segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            ids = {"image_id": image_id, "category_id": 1}
            annotations.append({"id": number, "segmentation": segmentation} | ids)
            sentences = [
                {"sent_id": next(sent_ids), "sent": " ".join(rng.choice(WORDS, 4))} for _ in range(count)
            ]
            refs.append({
                "ref_id": number, "ann_id": number, "split": split, "file_name": name, "sentences": sentences,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
            } | ids)  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "refcoco" / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))


def mean_kilobytes(root: Path) -> float:
    """Mean file size of the images in kB."""
    sizes = [path.stat().st_size for path in (root / "train2014").iterdir()]
    return sum(sizes) / len(sizes) / 1e3


def _jpeg(rng: np.random.Generator) -> bytes:
    """Patches of four sizes, and grain."""
    pixels = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    for cells, weight in ((4, 110), (16, 60), (64, 30), (160, 18)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8))
        pixels += weight * (np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) / 255 - 0.25)
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=COCO_QUALITY)
    return stream.getvalue()


def _polygon(rng: np.random.Generator) -> list[float]:
    """A star-shaped outline of 25 to 55 corners: x, y, x, y, ..."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(25, 56)))
    radius = rng.uniform(40, 120) * rng.uniform(0.7, 1.3, len(angles))
    x = np.clip(rng.uniform(100, WIDTH - 100) + radius * np.cos(angles), 0, WIDTH)
    y = np.clip(rng.uniform(100, HEIGHT - 100) + radius * np.sin(angles), 0, HEIGHT)
    return np.stack([x, y], axis=1).round(2).reshape(-1).tolist()
