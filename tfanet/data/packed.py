"""A packed data set: every image decoded and resized once, in memory-mapped files.

    index.json     the data set, the image size, the ids in order, and a checksum (CRC-32) of each entry
    images.bin     uint8 [images, S, S, 3]
    masks.bin      bits of S x S pixels per referred object, first pixel in the highest bit, no row padding

Reading it gives the same values as decoding, bit for bit.
"""

from __future__ import annotations

import hashlib
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
from typing_extensions import TypedDict

from tfanet.console import note, track
from tfanet.data.images import open_image
from tfanet.data.masks import segmentation_to_mask
from tfanet.data.preprocess import resize_image, resize_mask
from tfanet.data.refer import Expression, ReferDataset, ReferFiles, data_options
from tfanet.errors import UserError
from tfanet.files import atomic_folder, sha256, write_json
from tfanet.validation import from_json

_VERSION = 1
_INDEX, _IMAGES, _MASKS = "index.json", "images.bin", "masks.bin"
_AT_ONCE = 128
"""Entries decoded before they are written: 90 MB of images at 480 x 480."""
_Rows = dict[int, tuple[int, int]]


class Index(TypedDict):
    """index.json; `images` and `masks` are [id, checksum] of each entry in order."""

    version: int
    dataset: str
    split_by: str
    image_size: int
    identity: str
    images: list[tuple[int, int]]
    masks: list[tuple[int, int]]


def identity(files: ReferFiles) -> str:
    """SHA-256 of the refs and instances files, and of the names and sizes in bytes of the images used."""
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
    """Write every image and mask that an expression of any split needs into the new folder `out`.

    Unreadable images and masks are skipped, with one line each. Returns the numbers of images and masks
    written. The folder appears only when it is complete. Raises `UserError` if it is not empty, or the disk
    is full.
    """
    dataset = ReferDataset.of(files, None)
    images = list({pair.image_id: pair for pair in dataset}.values())
    objects = list({pair.ann_id: pair for pair in dataset}.values())
    with atomic_folder(out) as folder:
        needed = len(images) * image_size**2 * 3 + len(objects) * _mask_bytes(image_size)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(f"{out} needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left")

        def image(pair: Expression) -> np.ndarray:
            return resize_image(dataset.image(pair), image_size)

        def mask(pair: Expression) -> np.ndarray:
            return np.packbits(resize_mask(dataset.mask(pair), image_size))

        packed_images = _write(folder / _IMAGES, "packing images", images, image)
        if not packed_images:
            raise UserError(f"all {len(images)} images are unreadable")
        packed_masks = _write(folder / _MASKS, "packing masks", objects, mask)
        index = {
            "version": _VERSION,
            "dataset": files.dataset,
            "split_by": files.split_by,
            "image_size": image_size,
            "identity": identity(files),
            "images": [[pair.image_id, checksum] for pair, checksum in packed_images],
            "masks": [[pair.ann_id, checksum] for pair, checksum in packed_masks],
        }
        write_json(folder / _INDEX, index)
    return len(packed_images), len(packed_masks)


def _write(
    path: Path, what: str, pairs: Sequence[Expression], make: Callable[[Expression], np.ndarray]
) -> list[tuple[Expression, int]]:
    """Write one entry per pair, with one thread per core; returns those written, with their checksums."""

    def attempt(pair: Expression) -> np.ndarray | str:
        try:
            return make(pair)
        except UserError as error:
            return str(error)

    written = []
    remaining = iter(track(pairs, what, total=len(pairs)))
    with path.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(remaining, _AT_ONCE)):
            for pair, entry in zip(chunk, pool.map(attempt, chunk), strict=True):
                if isinstance(entry, str):
                    note(f"skipped: {entry}")
                    continue
                file.write(entry.data)
                written.append((pair, zlib.crc32(entry.data)))
    return written


def _mask_bytes(image_size: int) -> int:
    return -(-(image_size**2) // 8)


class PackedImages:
    """Images and masks of a packed data set by their ids; picklable, for loader workers.

    Raises `UserError`, with the command that makes a new one, if `folder` is not a packed data set, is
    damaged, or has another image size, other data, or pixels that decoding does not reproduce.
    """

    def __init__(self, folder: Path, files: ReferFiles, image_size: int) -> None:
        self.folder, self.image_size = folder, image_size
        root = files.instances_path.parent.parent
        options = shlex.join(data_options(files.dataset, files.split_by))
        options += f" --image-size {image_size}"
        self._advice = f"make a new one: tfanet-data pack {root} NEW_FOLDER {options}"
        index = self._read_index()
        self._image_rows, self._mask_rows = _rows(index["images"]), _rows(index["masks"])
        if index["image_size"] != image_size:
            side = index["image_size"]
            raise UserError(f"{folder} has images of {side} x {side}, not {image_size}; {self._advice}")
        packed = f"{index['dataset']} split by {index['split_by']}"
        requested = f"{files.dataset} split by {files.split_by}"
        if packed != requested:
            raise UserError(f"{folder} is {packed}, not {requested}; {self._advice}")
        if index["identity"] != identity(files):
            raise UserError(f"{folder} was made from other data than {root} has now; {self._advice}")
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        self._require_size(_IMAGES, len(self._image_rows) * image_size**2 * 3)
        self._require_size(_MASKS, len(self._mask_rows) * _mask_bytes(image_size))
        self._require_same_pixels(files)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}

    def image(self, image_id: int) -> np.ndarray | None:
        """A copy of the image as by `resize_image`; None if it was skipped. Raises `UserError` if damaged."""
        if image_id not in self._image_rows:
            return None
        row, checksum = self._image_rows[image_id]
        entry = self._checked(self._mapped()[0][row], checksum, f"image {image_id}")
        return entry.reshape(self.image_size, self.image_size, 3)

    def mask(self, ann_id: int) -> np.ndarray | None:
        """A copy of the mask as by `resize_mask`; None if it was skipped. Raises `UserError` if damaged."""
        if ann_id not in self._mask_rows:
            return None
        row, checksum = self._mask_rows[ann_id]
        bits = self._checked(self._mapped()[1][row], checksum, f"the mask of annotation {ann_id}")
        side = self.image_size
        return np.unpackbits(bits, count=side * side).reshape(side, side)

    def _checked(self, entry: np.ndarray, checksum: int, what: str) -> np.ndarray:
        entry = np.array(entry)
        if zlib.crc32(entry.data) != checksum:
            raise UserError(f"{what} in {self.folder} is damaged; {self._advice}")
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

    def _read_index(self) -> Index:
        path = self.folder / _INDEX
        try:
            text = path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"{self.folder} is not a packed data set; {self._advice}") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}; {self._advice}") from error
        index = from_json(Index, text, str(path), self._advice)
        if index["version"] != _VERSION:
            raise UserError(f"{self.folder} was packed by another version; {self._advice}")
        return index

    def _require_size(self, name: str, size: int) -> None:
        path = self.folder / name
        actual = path.stat().st_size if path.is_file() else 0
        if actual != size:
            raise UserError(f"{path} has {actual} bytes instead of {size}; {self._advice}")

    def _require_same_pixels(self, files: ReferFiles) -> None:
        """Check on three entries that decoding gives the packed values: another Pillow version may not."""
        for image_id in _spread(self._image_rows):
            path = files.image_path(image_id)
            decoded = resize_image(open_image(path, upright=False), self.image_size)
            if not np.array_equal(decoded, self.image(image_id)):  # pyright: ignore
                raise UserError(f"{path} gives other pixels than {self.folder} has; {self._advice}")
        for ann_id in _spread(self._mask_rows):
            entry = files.annotations[ann_id]
            image = files.images[entry["image_id"]]
            mask = segmentation_to_mask(entry["segmentation"], image["height"], image["width"])
            if not np.array_equal(resize_mask(mask, self.image_size), self.mask(ann_id)):  # pyright: ignore
                raise UserError(f"annotation {ann_id} gives another mask than {self.folder}; {self._advice}")


def _rows(entries: list[tuple[int, int]]) -> _Rows:
    """Row and checksum of each id."""
    return {entry_id: (row, checksum) for row, (entry_id, checksum) in enumerate(entries)}


def _spread(rows: _Rows) -> Iterator[int]:
    """The first, the middle and the last id."""
    ids = list(rows)
    return iter(dict.fromkeys(ids[place] for place in (0, len(ids) // 2, -1)) if ids else ())
