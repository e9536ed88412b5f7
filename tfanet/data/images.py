"""Images, masks and logits: read from files, resized to the model's size and back. No PyTorch."""

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
    """The image in `path`, decoded as RGB; see `decode_image`. Raises `UserError` if it is missing."""
    path = require_file(path, "image")
    return decode_image(path, str(path), upright=upright)


def decode_image(source: Path | BinaryIO, name: str, *, upright: bool = True) -> Image.Image:
    """The image in `source`, decoded as RGB; grey, palette and CMYK images are converted.

    Transparent images get a white background. Grey of more than 8 bits is scaled to 8: integers from 0..65535
    if they are 16-bit or exceed 255, floats from 0..1, or from 0..255 if they exceed 1. `upright` applies the
    EXIF orientation; use False for data sets whose masks match the stored pixels.

    Raises `UserError`, with `name`, if it is not an image, truncated, has grey values outside those ranges,
    or has over 179 million pixels, like a decompression bomb.
    """
    with _opened(source, name) as image:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image) if upright else image, name)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels as stored, from the file's header only. Raises as `open_image`."""
    path = require_file(path, "image")
    with _opened(path, str(path)) as image:
        return image.size


@contextmanager
def _opened(source: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """The image, not decoded yet; Pillow's errors while it is open become a `UserError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                yield image
    except Image.DecompressionBombError as error:
        raise UserError(f"image {name} is too large to be opened safely; scale it down first") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"image {name} is damaged or cannot be read: {error}") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bit(np.asarray(image), name)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bit(grey: np.ndarray, name: str) -> np.ndarray:
    """Grey values `[H, W]` of uint16, int32 or float32 as uint8; Pillow would clip them at 255."""
    low, high = grey.min(), grey.max()
    fraction = grey.dtype.kind == "f"
    largest = 255 if fraction else 65535
    if not (low >= 0 and high <= largest):
        raise UserError(f"image {name} has grey values from {low} to {high}; save it as 8-bit grey or RGB")
    if fraction:
        return np.rint(grey * 255 if high <= 1 else grey).astype(np.uint8)
    return (grey // 257 if grey.dtype.itemsize == 2 or high > 255 else grey).astype(np.uint8)
