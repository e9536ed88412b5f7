"""A data set ready for the model: each picture decoded and resized once, in files mapped into memory.

    index.json     what it is made from and for, the ids in order, and a checksum (CRC-32) of each entry
    images.bin     uint8 [pictures, S, S, 3]
    masks.bin      bits, of each referred object S x S, the first pixel highest, rows joined

Reading it gives the very numbers that decoding gives.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tfanet.console import note, track
from tfanet.data.images import open_image, resize_image, resize_mask
from tfanet.data.masks import segmentation_to_mask
from tfanet.data.refer import Expression, ReferDataset, ReferFiles, data_options
from tfanet.errors import UserError
from tfanet.files import atomic_folder, sha256, write_json

_VERSION = 1
_INDEX, _IMAGES, _MASKS = "index.json", "images.bin", "masks.bin"
_AT_ONCE = 128
"""Entries that are made ready before they are written: 90 MB of pictures at 480 x 480."""
_Rows = dict[int, tuple[int, int]]


def identity(files: ReferFiles) -> str:
    """SHA-256 of the refs and instances files, and of the names and sizes in bytes of the pictures used."""
    digest = hashlib.sha256()
    for path in (files.refs_path, files.instances_path):
        digest.update(sha256(path).encode())
    used = {files.images[ref["image_id"]]["file_name"] for ref in files.refs if not files.fault(ref)}
    for name in sorted(used):
        try:
            size = (files.image_folder / name).stat().st_size
        except OSError:
            size = -1
        digest.update(f"{name} {size}\n".encode())
    return digest.hexdigest()


def pack(files: ReferFiles, image_size: int, out: Path) -> tuple[int, int]:
    """Write every picture and mask that an expression of any split needs into the new folder `out`.

    Pictures and masks that cannot be read are left out, each with a line. Returns how many pictures and masks
    are in it. The folder appears only when it is complete. `UserError` where it is not empty, or the disk
    has no room.
    """
    dataset = ReferDataset.of(files, None)
    pictures = list({pair.image_id: pair for pair in dataset}.values())
    objects = list({pair.ann_id: pair for pair in dataset}.values())
    with atomic_folder(out) as folder:
        needed = len(pictures) * image_size**2 * 3 + len(objects) * _mask_bytes(image_size)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(f"{out} needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left")

        def image(pair: Expression) -> np.ndarray:
            return resize_image(dataset.image(pair), image_size)

        def mask(pair: Expression) -> np.ndarray:
            return np.packbits(resize_mask(dataset.mask(pair), image_size))

        images = _write(folder / _IMAGES, "packing pictures", pictures, image)
        if not images:
            raise UserError(f"none of the {len(pictures)} pictures can be read")
        masks = _write(folder / _MASKS, "packing masks", objects, mask)
        index = {
            "version": _VERSION,
            "dataset": files.dataset,
            "split_by": files.split_by,
            "image_size": image_size,
            "identity": identity(files),
            "images": [[pair.image_id, checksum] for pair, checksum in images],
            "masks": [[pair.ann_id, checksum] for pair, checksum in masks],
        }
        write_json(folder / _INDEX, index)
    return len(images), len(masks)


def _write(
    path: Path, what: str, pairs: Sequence[Expression], make: Callable[[Expression], np.ndarray]
) -> list[tuple[Expression, int]]:
    """One entry a pair, by a thread a core; returns those that could be made, with their checksums."""

    def attempt(pair: Expression) -> np.ndarray | str:
        try:
            return make(pair)
        except UserError as error:
            return str(error)

    written = []
    waiting = iter(track(pairs, what, total=len(pairs)))
    with path.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        while some := list(islice(waiting, _AT_ONCE)):
            for pair, made in zip(some, pool.map(attempt, some), strict=True):
                if isinstance(made, str):
                    note(f"left out: {made}")
                    continue
                file.write(made.data)
                written.append((pair, zlib.crc32(made.data)))
    return written


def _mask_bytes(image_size: int) -> int:
    return -(-(image_size**2) // 8)


class PackedImages:
    """Pictures and masks of a packed data set by their ids; picklable, for loader workers.

    Raises `UserError`, with the command that makes a new one, where `folder` holds none, or one of another
    size, of other data, made by other code, or damaged.
    """

    def __init__(self, folder: Path, files: ReferFiles, image_size: int) -> None:
        self.folder, self.image_size = folder, image_size
        root = files.instances_path.parent.parent
        wanted = shlex.join(data_options(files.dataset, files.split_by))
        self._again = f"make a new one: tfanet-data pack {root} NEW_FOLDER {wanted} --image-size {image_size}"
        index, self._image_rows, self._mask_rows = self._read_index()
        if index["image_size"] != image_size:
            side = index["image_size"]
            raise UserError(f"{folder} holds images of {side} x {side}, not {image_size}; {self._again}")
        held = f"{index['dataset']} split by {index['split_by']}"
        asked = f"{files.dataset} split by {files.split_by}"
        if held != asked:
            raise UserError(f"{folder} holds {held}, not {asked}; {self._again}")
        if index["identity"] != identity(files):
            raise UserError(f"{folder} was made from other data than {root} holds now; {self._again}")
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        self._require_size(_IMAGES, len(self._image_rows) * image_size**2 * 3)
        self._require_size(_MASKS, len(self._mask_rows) * _mask_bytes(image_size))
        self._require_same(files)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}

    def image(self, image_id: int) -> np.ndarray | None:
        """A copy of the picture as by `resize_image`; None where it was left out. `UserError` if damaged."""
        if image_id not in self._image_rows:
            return None
        row, checksum = self._image_rows[image_id]
        entry = self._checked(self._mapped()[0][row], checksum, f"picture {image_id}")
        return entry.reshape(self.image_size, self.image_size, 3)

    def mask(self, ann_id: int) -> np.ndarray | None:
        """A copy of the mask as by `resize_mask`; None where it was left out. `UserError` if damaged."""
        if ann_id not in self._mask_rows:
            return None
        row, checksum = self._mask_rows[ann_id]
        bits = self._checked(self._mapped()[1][row], checksum, f"the mask of annotation {ann_id}")
        side = self.image_size
        return np.unpackbits(bits, count=side * side).reshape(side, side)

    def _checked(self, entry: np.ndarray, checksum: int, what: str) -> np.ndarray:
        entry = np.array(entry)
        if zlib.crc32(entry.data) != checksum:
            raise UserError(f"{what} in {self.folder} is damaged; {self._again}")
        return entry

    def _mapped(self) -> tuple[np.ndarray, np.ndarray]:
        if self._maps is None:
            widths = self.image_size**2 * 3, _mask_bytes(self.image_size)
            images, masks = (
                np.memmap(self.folder / name, np.uint8, "r").reshape(-1, width)
                for name, width in zip((_IMAGES, _MASKS), widths, strict=True)
            )
            self._maps = images, masks
        return self._maps

    def _read_index(self) -> tuple[dict[str, Any], _Rows, _Rows]:
        path = self.folder / _INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index["version"] == _VERSION:
                _ = index["image_size"], index["identity"], index["dataset"], index["split_by"]
                return index, _rows(index["images"]), _rows(index["masks"])
        except FileNotFoundError as error:
            raise UserError(f"{self.folder} holds no packed data set; {self._again}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged or cannot be read: {error}; {self._again}") from error
        raise UserError(f"{self.folder} was packed by another version; {self._again}")

    def _require_size(self, name: str, size: int) -> None:
        path = self.folder / name
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise UserError(f"{path} has {found} bytes instead of {size}; {self._again}")

    def _require_same(self, files: ReferFiles) -> None:
        """That decoding still gives the packed numbers, on three entries: another Pillow may not."""
        for image_id in _spread(self._image_rows):
            path = files.image_path(image_id)
            decoded = resize_image(open_image(path, upright=False), self.image_size)
            if not np.array_equal(decoded, self.image(image_id)):  # pyright: ignore
                raise UserError(f"{path} gives other pixels than {self.folder} holds; {self._again}")
        for ann_id in _spread(self._mask_rows):
            entry = files.annotations[ann_id]
            image = files.images[entry["image_id"]]
            drawn = segmentation_to_mask(entry["segmentation"], image["height"], image["width"])
            if not np.array_equal(resize_mask(drawn, self.image_size), self.mask(ann_id)):  # pyright: ignore
                raise UserError(f"annotation {ann_id} gives another mask than {self.folder}; {self._again}")


def _rows(entries: list[list[int]]) -> _Rows:
    """Row and checksum of each id."""
    return {number: (row, checksum) for row, (number, checksum) in enumerate(entries)}


def _spread(rows: _Rows) -> Iterator[int]:
    """The first, the middle and the last id."""
    ids = list(rows)
    return iter(dict.fromkeys(ids[place] for place in (0, len(ids) // 2, -1)) if ids else ())
