"""Images, masks and logits between files, the model's square and the picture's own size. No PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tfanet.errors import UserError
from tfanet.files import require_file


def open_image(path: str | Path, *, upright: bool = True) -> Image.Image:
    """The picture in `path`, fully decoded, as RGB: see `decode_image`. `UserError` when it is missing."""
    path = require_file(path, "image")
    return decode_image(path, str(path), upright=upright)


def decode_image(source: Path | BinaryIO, name: str, *, upright: bool = True) -> Image.Image:
    """The picture in `source`, fully decoded, as RGB; grey, palette and CMYK pictures are converted.

    Transparent pictures are laid on white. Grey of more than 8 bits is scaled to 8: whole numbers from
    0..65535 if they are 16-bit or go beyond 255, fractions from 0..1 unless they go beyond 1, then from
    0..255. `upright` turns the picture as its EXIF orientation says; a data set whose masks follow the stored
    pixels wants False.

    Raises `UserError`, calling the picture `name`, when it is no image, truncated, of grey values outside
    those ranges, or large enough (over 179 million pixels) to look like a decompression bomb.
    """
    with _opened(source, name) as picture:
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture) if upright else picture, name)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels as stored, from the file's header alone; `UserError` as for `open_image`."""
    path = require_file(path, "image")
    with _opened(path, str(path)) as picture:
        return picture.size


@contextmanager
def _opened(source: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """The picture, not decoded yet; what goes wrong while it is open ends in a `UserError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as picture:
                yield picture
    except Image.DecompressionBombError as error:
        raise UserError(f"image {name} is too large to be opened safely; scale it down first") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"image {name} is damaged or cannot be read: {error}") from error


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return Image.fromarray(_eight_bit(np.asarray(picture), name)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _eight_bit(grey: np.ndarray, name: str) -> np.ndarray:
    """Grey values `[H, W]` of uint16, int32 or float32 as uint8; Pillow itself would clip them at 255."""
    low, high = grey.min(), grey.max()
    fraction = grey.dtype.kind == "f"
    largest = 255 if fraction else 65535
    if not (low >= 0 and high <= largest):
        raise UserError(f"image {name} has grey values from {low} to {high}; save it as 8-bit grey or RGB")
    if fraction:
        return np.rint(grey * 255 if high <= 1 else grey).astype(np.uint8)
    return (grey // 257 if grey.dtype.itemsize == 2 or high > 255 else grey).astype(np.uint8)
