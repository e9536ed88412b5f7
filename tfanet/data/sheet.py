"""A contact sheet of referring expressions: each picture with its mask outlined, the sentence below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

_CELL, _CAPTION, _GAP = 240, 40, 12
_PAPER, _INK, _OUTLINE = (250, 250, 248), (32, 32, 36), (0, 255, 220)


def contact_sheet(pairs: Sequence[tuple[Image.Image, str, np.ndarray]], columns: int = 6) -> Image.Image:
    """One RGB picture of all `pairs`: picture, sentence and mask (uint8 `[H, W]`, 0 outside)."""
    columns = max(1, min(columns, len(pairs)))
    rows = -(-len(pairs) // columns)
    across, down = _CELL + _GAP, _CELL + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for place, (picture, sentence, mask) in enumerate(pairs):
        left, top = _GAP + place % columns * across, _GAP + place // columns * down
        cell = _outlined(picture, mask)
        sheet.paste(cell, (left + (_CELL - cell.width) // 2, top + (_CELL - cell.height) // 2))
        lines = textwrap.wrap(sentence, 32, max_lines=2, placeholder=" ...")
        pen.multiline_text(
            (left + _CELL / 2, top + _CELL + 4), "\n".join(lines), _INK, font, "ma", align="center"
        )
    return sheet


def _outlined(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture scaled into a cell, with a bright line on a dark one just outside the mask."""
    scale = _CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    cell = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    inside = Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).resize(
        size, Image.Resampling.NEAREST
    )
    for reach, colour in ((9, (0, 0, 0)), (7, _OUTLINE)):
        cell.paste(colour, None, ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(reach)), inside))
    return cell
