"""A picture to write on: symbols with subscripts, labels, and text that is made to fit."""

from __future__ import annotations

import re

from PIL import Image, ImageDraw

from tfanet.visualize import INK, PAPER, lettering

Place = tuple[int, int]
Colour = tuple[int, int, int]

_SUBSCRIPT, _LOWERED = 0.7, 0.48
_TAG = 16


class Canvas:
    """An RGB picture of one plain colour; places are (left, top) in pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self._pen = ImageDraw.Draw(self.image)

    def paste(self, picture: Image.Image, place: Place) -> None:
        self.image.paste(picture, place)

    def write(self, place: Place, text: str, size: int, colour: Colour = INK) -> None:
        """One line of text as it is."""
        self._pen.text(place, text, colour, lettering(size))

    def symbol(self, place: Place, text: str, size: int, colour: Colour = INK) -> None:
        """One line in which `F_LV` and `M_4` are letters with subscripts."""
        left = float(place[0])
        for piece, small in _parts(text):
            font = lettering(_size(size, small))
            self._pen.text((left, place[1] + round(_LOWERED * size * small)), piece, colour, font)
            left += font.getlength(piece)

    def tag(self, text: str, place: Place, room: tuple[int, int]) -> None:
        """A light label in the upper left corner of a picture of size `room` at `place`, if it fits there."""
        width, height = 11 + round(symbol_width(text, _TAG)), 25
        if width + 10 > room[0] or height + 10 > room[1]:
            return
        left, top = place[0] + 5, place[1] + 5
        self._pen.rounded_rectangle((left, top, left + width, top + height), 5, PAPER)
        self.symbol((left + 5, top + 2), text, _TAG)


def symbol_width(text: str, size: int) -> float:
    """The width in pixels of what `Canvas.symbol` draws."""
    return sum(lettering(_size(size, small)).getlength(piece) for piece, small in _parts(text))


def fit(text: str, size: int, least: int, room: int) -> tuple[str, int]:
    """`text` and a size of at most `size` at which its symbols take at most `room` pixels.

    No smaller than `least`: what is still too long is cut and ends with dots.
    """
    while size > least and symbol_width(text, size) > room:
        size -= 1
    while len(text) > 2 and symbol_width(text, size) > room:
        text = text[:-2] + "…"
    return text, size


def wrap(text: str, size: int, room: int) -> list[str]:
    """`text` in lines of at most `room` pixels; a word that is longer is broken."""
    font = lettering(size)
    lines, line = [], ""
    for word in text.split():
        if font.getlength(f"{line} {word}".strip()) <= room:
            line = f"{line} {word}".strip()
            continue
        lines += [line] if line else []
        line = word
        while font.getlength(line) > room:
            letters = max((n for n in range(1, len(line)) if font.getlength(line[:n]) <= room), default=1)
            lines.append(line[:letters])
            line = line[letters:]
    return [*lines, line]


def _parts(text: str) -> list[tuple[str, bool]]:
    """The pieces of `text`, and whether each is a subscript."""
    pieces = re.split(r"(?<=\b[FM])_(\w+)", text)
    return [(piece, bool(number % 2)) for number, piece in enumerate(pieces) if piece]


def _size(size: int, small: bool) -> int:
    return round(_SUBSCRIPT * size) if small else size
