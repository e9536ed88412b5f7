"""Masks drawn on images, and contact sheets: one style for data sets, predictions and reports."""

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
TARGET: tuple[int, int, int] = (255, 214, 10)
PAPER: tuple[int, int, int] = (250, 250, 248)
INK: tuple[int, int, int] = (30, 32, 38)
FAINT: tuple[int, int, int] = (118, 120, 128)
_GOOD, _FAIR, _POOR = (22, 138, 72), (186, 117, 8), (200, 44, 52)
_TINT = 0.6
_IMAGE, _SEAM, _GAP, _CAPTION, _HEAD = 224, 4, 20, 44, 44


@dataclass(frozen=True)
class Cell:
    """One sample of a contact sheet; masks are bool `[H, W]` at the image's own size, None to omit them."""

    image: Image.Image
    expression: str
    prediction: np.ndarray | None = None
    target: np.ndarray | None = None
    iou: float | None = None
    """0..1, written next to the expression."""


def require_image_path(path: Path) -> None:
    """Raise `UserError` unless an image can be written to `path`: its suffix and its folder."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is not the name of an image; it must end in {', '.join(SUFFIXES)}")
    require_writable(path)


def save_image(image: Image.Image, path: Path) -> None:
    """Write `image` to `path` in the format of its suffix, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, quality=95)


def overlay(
    image: Image.Image, prediction: np.ndarray | None, target: np.ndarray | None = None
) -> Image.Image:
    """`image` with the prediction blue in a white outline, the rest dimmed, the target outlined in yellow.

    Masks are bool `[H, W]` of the image's size. The result is RGB of the same size; the line width is
    proportional to it.
    """
    line = max(1.2, max(image.size) / 200)
    base = drawn = image.convert("RGB")
    if prediction is not None:
        faded = Image.blend(base, base.convert("L").convert("RGB"), 0.35)
        dimmed = Image.blend(faded, _plain(base, (0, 0, 0)), 0.12)
        drawn = Image.composite(
            Image.blend(base, _plain(base, PREDICTION), _TINT), dimmed, mask_image(prediction)
        )
    if target is not None:
        drawn.paste((0, 0, 0), None, _band(target, 0.0, 2.2 * line))
        drawn.paste(TARGET, None, _band(target, 0.4 * line, 1.7 * line))
    if prediction is not None:
        drawn.paste((255, 255, 255), None, _band(prediction, -0.6 * line, 0.6 * line))
    return drawn


def mask_image(mask: np.ndarray) -> Image.Image:
    """bool `[H, W]` as an 8-bit grey image: 255 in the mask, 0 elsewhere."""
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))


def contact_sheet(
    cells: Sequence[Cell], columns: int = 3, title: str = "", *, legend: bool = True
) -> Image.Image:
    """One RGB image of all cells, each with the image, the overlay, the expression and the IoU.

    `legend` explains the colours at the right of the title. Raises `ValueError` if there are no cells.
    """
    if not cells:
        raise ValueError("a contact sheet needs at least one cell")
    columns = max(1, min(columns, len(cells)))
    rows = -(-len(cells) // columns)
    cell_width, cell_height = 2 * _IMAGE + _SEAM + _GAP, _IMAGE + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * cell_width + _GAP, _HEAD + rows * cell_height + _GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    colours: list[tuple[str, tuple[int, int, int]]] = []
    if any(cell.target is not None for cell in cells):
        colours.append(("ground truth", TARGET))
    if any(cell.prediction is not None for cell in cells):
        colours.append(("prediction", PREDICTION))
    _draw_header(pen, sheet.width, title, colours if legend else [])
    for i, cell in enumerate(cells):
        left = _GAP + i % columns * cell_width
        top = _HEAD + _GAP // 2 + i // columns * cell_height
        _draw_cell(sheet, pen, cell, left, top)
    return sheet


def _draw_cell(sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, left: int, top: int) -> None:
    scale = _IMAGE / max(cell.image.size)
    size = (max(1, round(cell.image.width * scale)), max(1, round(cell.image.height * scale)))
    plain = cell.image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    prediction, target = (
        None if mask is None else _resize_smoothly(mask, size) for mask in (cell.prediction, cell.target)
    )
    inset = (_IMAGE - size[1]) // 2
    start = left + (2 * _IMAGE + _SEAM - 2 * size[0] - _SEAM) // 2
    for i, image in enumerate((plain, overlay(plain, prediction, target))):
        sheet.paste(image, (start + i * (size[0] + _SEAM), top + inset))
    _draw_caption(pen, cell, left, top + _IMAGE + 6)


def _draw_caption(pen: ImageDraw.ImageDraw, cell: Cell, left: int, top: int) -> None:
    """The expression in at most two lines, and the IoU at the right, coloured by its value."""
    right = left + 2 * _IMAGE + _SEAM
    width = 2 * _IMAGE
    if cell.iou is not None:
        value, font = f"IoU {cell.iou:.2f}", lettering(15)
        pen.text((right, top), value, _iou_colour(cell.iou), font, "ra")
        width -= round(pen.textlength(value, font)) + 12
    font = lettering(15)
    letters = max(8, round(width / max(1.0, pen.textlength("n", font))))
    lines = textwrap.wrap(" ".join(cell.expression.split()), letters, max_lines=2, placeholder=" …")
    pen.multiline_text((left, top), "\n".join(lines), INK, font, spacing=3)


def _draw_header(
    pen: ImageDraw.ImageDraw, width: int, title: str, colours: list[tuple[str, tuple[int, int, int]]]
) -> None:
    """The title at the left, the legend at the right."""
    font, small = lettering(18), lettering(14)
    middle = _HEAD // 2 + 2
    pen.text((_GAP, middle), title, INK, font, "lm")
    x = width - _GAP
    for name, colour in colours:
        pen.text((x, middle), name, FAINT, small, "rm")
        x -= round(pen.textlength(name, small)) + 8
        box = (x - 16, middle - 6, x, middle + 6)
        pen.rounded_rectangle(box, 3, colour if colour == PREDICTION else None, colour, 3)
        x -= 32


def _iou_colour(iou: float) -> tuple[int, int, int]:
    if iou >= 0.7:
        return _GOOD
    return _FAIR if iou >= 0.5 else _POOR


def lettering(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all drawings, `size` pixels high; it has little more than ASCII."""
    return ImageFont.load_default(size)


def _resize_smoothly(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size with smooth edges; for display only."""
    return np.asarray(mask_image(mask).resize(size, Image.Resampling.BICUBIC)) > 127


def _band(mask: np.ndarray, inner: float, outer: float) -> Image.Image:
    """Coverage 0..255 of the pixels from `inner` to `outer` pixels outside the mask's edge (inside: below 0).

    A Gaussian blur turns a straight edge into the normal distribution of the distance from it, so each grey
    value of the blurred mask gives a distance; corners become rounded. The image's border is not an edge.
    """
    sigma = max(abs(inner), abs(outer), 1.0)
    blurred = mask_image(mask).filter(ImageFilter.GaussianBlur(sigma))
    normal = NormalDist(0.0, sigma)
    distances = [-normal.inv_cdf((grey + 0.5) / 256) for grey in range(256)]
    return blurred.point(
        [round(255 * min(1.0, max(0.0, min(d - inner, outer - d) + 0.5))) for d in distances]
    )


def _plain(like: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", like.size, colour)
