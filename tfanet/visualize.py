"""Masks on pictures, and sheets of them: one style for data sets, predictions and reports."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tfanet.errors import UserError
from tfanet.files import atomic_path, require_writable

SUFFIXES = (".png", ".jpg", ".jpeg")
PREDICTION: tuple[int, int, int] = (0, 168, 255)
TRUTH: tuple[int, int, int] = (255, 214, 10)
PAPER: tuple[int, int, int] = (250, 250, 248)
INK: tuple[int, int, int] = (30, 32, 38)
FAINT: tuple[int, int, int] = (118, 120, 128)
_GOOD, _FAIR, _POOR = (22, 138, 72), (186, 117, 8), (200, 44, 52)
_TINT = 0.6
_PICTURE, _SEAM, _GAP, _CAPTION, _HEAD = 224, 4, 20, 44, 44


@dataclass(frozen=True)
class Cell:
    """One sample of a sheet; masks are bool `[H, W]` at the picture's own size."""

    picture: Image.Image
    sentence: str
    mask: np.ndarray | None = None
    """The prediction; None to show the truth alone."""
    truth: np.ndarray | None = None
    iou: float | None = None
    """0..1, to be written beside the sentence."""


def require_image_path(path: Path) -> None:
    """Raise `UserError` unless a picture can be written to `path`: its suffix and its folder."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is not the name of a picture; it must end in {', '.join(SUFFIXES)}")
    require_writable(path)


def save_image(picture: Image.Image, path: Path) -> None:
    """Write `picture` to `path` in the format of its suffix, atomically."""
    with atomic_path(path) as temporary:
        picture.save(temporary, quality=95)


def overlay(picture: Image.Image, mask: np.ndarray | None, truth: np.ndarray | None = None) -> Image.Image:
    """`picture` (RGB) with `mask` tinted blue in a white line, the rest dimmed, and `truth` in a yellow line.

    Masks are bool `[H, W]` of the picture's size; the picture keeps its size, and lines grow with it.
    """
    line = max(1.2, max(picture.size) / 200)
    base = drawn = picture.convert("RGB")
    if mask is not None:
        faded = Image.blend(base, base.convert("L").convert("RGB"), 0.35)
        dimmed = Image.blend(faded, _plain(base, (0, 0, 0)), 0.12)
        drawn = Image.composite(Image.blend(base, _plain(base, PREDICTION), _TINT), dimmed, _stencil(mask))
    if truth is not None:
        drawn.paste((0, 0, 0), None, _band(truth, 0.0, 2.2 * line))
        drawn.paste(TRUTH, None, _band(truth, 0.4 * line, 1.7 * line))
    if mask is not None:
        drawn.paste((255, 255, 255), None, _band(mask, -0.6 * line, 0.6 * line))
    return drawn


def mask_image(mask: np.ndarray) -> Image.Image:
    """bool `[H, W]` as an 8-bit grey picture, 255 where the object is and 0 elsewhere."""
    return _stencil(mask)


def contact_sheet(
    cells: Sequence[Cell], columns: int = 3, title: str = "", *, legend: bool = True
) -> Image.Image:
    """One RGB picture of all cells, each with the plain picture, the overlay, its sentence and its IoU.

    `legend` says at the right of the title which colour is the truth and which the prediction.

    `ValueError` without any cell.
    """
    if not cells:
        raise ValueError("a contact sheet needs at least one cell")
    columns = max(1, min(columns, len(cells)))
    rows = -(-len(cells) // columns)
    across, down = 2 * _PICTURE + _SEAM + _GAP, _PICTURE + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * across + _GAP, _HEAD + rows * down + _GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    truths, masks = (
        any(cell.truth is not None for cell in cells),
        any(cell.mask is not None for cell in cells),
    )
    colours: list[tuple[str, tuple[int, int, int]]] = ([("truth", TRUTH)] if truths else []) + (
        [("prediction", PREDICTION)] if masks else []
    )
    _head(pen, sheet.width, title, colours if legend else [])
    for place, cell in enumerate(cells):
        left = _GAP + place % columns * across
        top = _HEAD + _GAP // 2 + place // columns * down
        _draw_cell(sheet, pen, cell, left, top)
    return sheet


def _draw_cell(sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, left: int, top: int) -> None:
    scale = _PICTURE / max(cell.picture.size)
    size = (max(1, round(cell.picture.width * scale)), max(1, round(cell.picture.height * scale)))
    plain = cell.picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    truth = None if cell.truth is None else _scaled(cell.truth, size)
    mask = None if cell.mask is None else _scaled(cell.mask, size)
    pairs = (plain, overlay(plain, mask, truth))
    inset = (_PICTURE - size[1]) // 2
    start = left + (2 * _PICTURE + _SEAM - 2 * size[0] - _SEAM) // 2
    for number, picture in enumerate(pairs):
        sheet.paste(picture, (start + number * (size[0] + _SEAM), top + inset))
    _caption(pen, cell, left, top + _PICTURE + 6)


def _caption(pen: ImageDraw.ImageDraw, cell: Cell, left: int, top: int) -> None:
    """The sentence, at most two lines, and at the right the IoU in the colour of its worth."""
    right = left + 2 * _PICTURE + _SEAM
    room = 2 * _PICTURE
    if cell.iou is not None:
        figure, font = f"IoU {cell.iou:.2f}", lettering(15)
        pen.text((right, top), figure, _worth(cell.iou), font, "ra")
        room -= round(pen.textlength(figure, font)) + 12
    font = lettering(15)
    letters = max(8, round(room / max(1.0, pen.textlength("n", font))))
    lines = textwrap.wrap(" ".join(cell.sentence.split()), letters, max_lines=2, placeholder=" …")
    pen.multiline_text((left, top), "\n".join(lines), INK, font, spacing=3)


def _head(
    pen: ImageDraw.ImageDraw, width: int, title: str, colours: list[tuple[str, tuple[int, int, int]]]
) -> None:
    """The title at the left, what the colours mean at the right."""
    font, small = lettering(18), lettering(14)
    middle = _HEAD // 2 + 2
    pen.text((_GAP, middle), title, INK, font, "lm")
    place = width - _GAP
    for name, colour in colours:
        pen.text((place, middle), name, FAINT, small, "rm")
        place -= round(pen.textlength(name, small)) + 8
        box = (place - 16, middle - 6, place, middle + 6)
        pen.rounded_rectangle(box, 3, colour if colour == PREDICTION else None, colour, 3)
        place -= 32


def _worth(iou: float) -> tuple[int, int, int]:
    if iou >= 0.7:
        return _GOOD
    return _FAIR if iou >= 0.5 else _POOR


def lettering(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The one typeface of all pictures, `size` pixels high; it has the characters of ASCII and few more."""
    return ImageFont.load_default(size)


def _stencil(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))


def _scaled(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size with smooth edges; only for the eye."""
    return np.asarray(_stencil(mask).resize(size, Image.Resampling.BICUBIC)) > 127


def _band(mask: np.ndarray, near: float, far: float) -> Image.Image:
    """The smooth stencil of the pixels from `near` to `far` pixels outside the mask's edge (inside: below 0).

    A Gaussian blur turns a straight edge into the normal distribution of the distance from it, so each grey
    value of the blurred mask tells a distance; corners come out rounded. The picture's border is no edge.
    """
    sigma = max(abs(near), abs(far), 1.0)
    blurred = _stencil(mask).filter(ImageFilter.GaussianBlur(sigma))
    normal = NormalDist(0.0, sigma)
    distances = [-normal.inv_cdf((grey + 0.5) / 256) for grey in range(256)]
    return blurred.point([round(255 * min(1.0, max(0.0, min(d - near, far - d) + 0.5))) for d in distances])


def _plain(like: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", like.size, colour)
