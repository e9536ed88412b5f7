"""One figure of `tfanet_eval.maps.Maps`: the picture and the answer, then stage by stage every map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tfanet.data.preprocess import logits_to_size
from tfanet.visualize import FAINT, PREDICTION, lettering, overlay
from tfanet_eval.maps.canvas import Canvas, Place, fit, wrap

if TYPE_CHECKING:
    from tfanet_eval.maps.trace import Maps, StageMaps

_HEAT = (
    (6, 23, 63), (54, 36, 116), (130, 33, 142), (212, 3, 108),
    (249, 78, 71), (255, 143, 61), (255, 196, 97), (255, 241, 178),
)  # fmt: skip
"""Colours from low to high at even steps of lightness, so that equal steps of a map look equal."""
_OPAQUE = 0.75
"""How much of those colours covers the grey picture."""
_NEGATIVE, _POSITIVE = (20, 120, 220), (245, 110, 20)

_SIDE, _LONGEST = 200, 320
"""A map has about `_SIDE` squared pixels, and no side beyond `_LONGEST`."""
_NARROWEST, _LOWEST = 118, 76
"""The least width of a column and height of a row: room for the words beside narrow and low maps."""
_MARGIN, _SEAM, _GAP, _LABEL, _HEADING, _LINE = 32, 8, 30, 96, 56, 38
_TITLE, _TEXT, _NOTE, _LEAST = 30, 20, 16, 13
_WORDS_BESIDE = 5
"""Words that stand beside the other maps; more of them go below."""


def heat(values: np.ndarray) -> np.ndarray:
    """Values 0..1 [H, W], clipped, -> RGB 0..255 float [H, W, 3], dark blue to pale yellow."""
    steps = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, steps, channel) for channel in zip(*_HEAT, strict=True)], axis=-1)


@dataclass(frozen=True)
class _Column:
    """One kind of map at all stages."""

    note: str
    title: str
    cells: Sequence[Image.Image]
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class _Grid:
    """Where the maps stand: a step to the next column and to the next row."""

    across: int
    down: int

    def draw(self, canvas: Canvas, columns: Sequence[_Column], place: Place) -> None:
        """The columns with their headings, the first at `place`."""
        for number, column in enumerate(columns):
            left = place[0] + number * self.across
            title, size = fit(column.title, _TEXT, _LEAST, self.across - _SEAM)
            canvas.symbol((left, place[1]), column.note, _NOTE, FAINT)
            canvas.symbol((left, place[1] + 23), title, size)
            for row, cell in enumerate(column.cells):
                corner = (left, place[1] + _HEADING + row * self.down)
                canvas.paste(cell, corner)
                if column.tags:
                    canvas.tag(column.tags[row], corner, cell.size)

    def label(self, canvas: Canvas, stages: Sequence[StageMaps], place: Place) -> None:
        """What stands before each row: the stage, its stride and the size of its maps."""
        for number, stage in enumerate(stages):
            left, top = place[0], place[1] + _HEADING + number * self.down
            height, width = stage.fused.shape
            canvas.write((left, top), f"stage {number + 1}", _TEXT)
            canvas.write((left, top + 28), f"stride {stage.stride}", _NOTE, FAINT)
            canvas.write((left, top + 50), f"{width} x {height}", _NOTE, FAINT)


def map_sheet(picture: Image.Image, sentence: str, maps: Maps) -> Image.Image:
    """The figure as an RGB picture: stages by rows; |F_LV|, |F_F|, M_j and each word's F_f by columns.

    What the model has no maps of is left out.
    """
    size = _thumbnail(picture.size)
    plain = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    grid = _Grid(max(size[0], _NARROWEST) + _SEAM, max(size[1], _LOWEST) + _SEAM)
    columns, words = _stage_columns(plain, maps), _word_columns(plain, maps)
    beside, after = words[:_WORDS_BESIDE], words[_WORDS_BESIDE:]
    gap = _GAP if words else 0
    width = 2 * _MARGIN + _LABEL + (2 + len(columns) + len(beside)) * grid.across + gap
    room = width - 2 * _MARGIN
    below = _chunks(after, (room - _LABEL) // grid.across)

    title = wrap(f"“{' '.join(sentence.split())}”", _TITLE, room)
    legend = _legend(room, maps.stages[0].mask is not None, bool(words))
    top = _MARGIN + _LINE * len(title)
    block = _HEADING + len(maps.stages) * grid.down + _GAP
    bottom = top + block * (1 + len(below))

    canvas = Canvas(width, bottom + 30 * len(legend) + _MARGIN // 2)
    for number, line in enumerate(title):
        canvas.write((_MARGIN, _MARGIN - 8 + _LINE * number), line, _TITLE)
    _draw_answer(canvas, picture, maps, size, (_MARGIN, top + _HEADING), 2 * grid.down)
    left = _MARGIN + 2 * grid.across
    grid.label(canvas, maps.stages, (left, top))
    grid.draw(canvas, columns, (left + _LABEL, top))
    grid.draw(canvas, beside, (left + _LABEL + len(columns) * grid.across + gap, top))
    for number, chunk in enumerate(below, 1):
        grid.label(canvas, maps.stages, (_MARGIN, top + number * block))
        grid.draw(canvas, chunk, (_MARGIN + _LABEL, top + number * block))
    _draw_legend(canvas, legend, bottom)
    return canvas.image


def _thumbnail(size: tuple[int, int]) -> tuple[int, int]:
    """The size of a map over a picture of `size`."""
    ratio = math.sqrt(size[0] / size[1])
    width, height = _SIDE * ratio, _SIDE / ratio
    shrink = min(1.0, _LONGEST / max(width, height))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def _stage_columns(plain: Image.Image, maps: Maps) -> list[_Column]:
    columns = []
    aligned = [_heated(plain, stage.aligned) for stage in maps.stages if stage.aligned is not None]
    if aligned:
        columns.append(_Column("KPS, eq. 15", "|F_LV|", aligned))
    columns.append(_Column("KFS, eq. 22", "|F_F|", [_heated(plain, stage.fused) for stage in maps.stages]))
    masks = [_heated(plain, stage.mask, low=0.0) for stage in maps.stages if stage.mask is not None]
    if masks:
        tags = [f"M_{len(masks) - i}" for i in range(len(masks))]
        columns.append(_Column("KIS, eq. 25-26", "read from M_j", masks, tags))
    return columns


def _word_columns(plain: Image.Image, maps: Maps) -> list[_Column]:
    stacks = [stage.words for stage in maps.stages if stage.words is not None]
    if not stacks:
        return []
    cells = [_signed_row(plain, stack) for stack in stacks]
    return [
        _Column("KPS, eq. 16: F_f" if n in (0, _WORDS_BESIDE) else "", word, [row[n] for row in cells])
        for n, word in enumerate(maps.words)
    ]


def _upsampled(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))


def _heated(plain: Image.Image, values: np.ndarray, low: float | None = None) -> Image.Image:
    """`values` [H, W] over the grey picture, from their own lowest (or `low`) to their own highest."""
    smooth = _upsampled(values, plain.size)
    lowest = np.percentile(smooth, 1) if low is None else low
    highest = np.percentile(smooth, 99.5)
    share = (smooth - lowest) / max(highest - lowest, 1e-12)
    return _blend(plain, heat(share.clip(0, 1)), np.full(share.shape, _OPAQUE))


def _signed_row(plain: Image.Image, stack: np.ndarray) -> list[Image.Image]:
    """[n, H, W] -> n pictures with one scale: blue below 0, orange above, the grey picture at 0."""
    smooth = [_upsampled(values, plain.size) for values in stack]
    scale = max(float(np.percentile(np.abs(smooth), 99)), 1e-12) if smooth else 1.0
    return [_signed(plain, values / scale) for values in smooth]


def _signed(plain: Image.Image, share: np.ndarray) -> Image.Image:
    colour = np.where(share[..., None] < 0, _NEGATIVE, _POSITIVE)
    return _blend(plain, colour, 0.88 * np.abs(share).clip(0, 1) ** 0.8)


def _blend(plain: Image.Image, colour: np.ndarray, weight: np.ndarray) -> Image.Image:
    """`colour` [H, W, 3] laid with `weight` [H, W], 0..1, over the picture in grey."""
    grey = np.asarray(plain.convert("L"), dtype=float)[..., None]
    # Every picture around middle grey: colours read alike over a dark one and a bright one.
    grey = (128 + 0.8 * (grey - grey.mean())).clip(0, 255)
    mixed = weight[..., None] * colour + (1 - weight[..., None]) * grey
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _draw_answer(
    canvas: Canvas, picture: Image.Image, maps: Maps, thumbnail: tuple[int, int], place: Place, step: int
) -> None:
    """The picture, and the object found `step` pixels below, each as large as four maps."""
    size = (2 * thumbnail[0] + _SEAM // 2, 2 * thumbnail[1] + _SEAM)
    large = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    mask = logits_to_size(maps.logits, size[1], size[0]) > 0
    for number, (name, drawn) in enumerate((("picture", large), ("object found", overlay(large, mask)))):
        corner = (place[0], place[1] + number * step)
        canvas.paste(drawn, corner)
        canvas.tag(name, corner, size)


def _chunks(columns: Sequence[_Column], length: int) -> list[Sequence[_Column]]:
    return [columns[start : start + length] for start in range(0, len(columns), length)]


_Entry = tuple[str, str, int]
"""Of the legend: the kind of swatch, the text, the left edge."""


def _legend(room: int, masks: bool, words: bool) -> list[list[_Entry]]:
    """Lines of entries that take at most `room` pixels each."""
    entries = [("heat", f"low to high, each map by itself{' (M from 0)' if masks else ''}")]
    entries += [("signed", "negative, 0, positive: each stage by itself")] if words else []
    entries += [("found", "the object found")]
    lines: list[list[_Entry]] = [[]]
    left = 0
    for kind, text in entries:
        needed = 130 + round(lettering(_NOTE).getlength(text))
        if lines[-1] and left + needed > room:
            lines.append([])
            left = 0
        lines[-1].append((kind, text, _MARGIN + left))
        left += needed + 36
    return lines


def _draw_legend(canvas: Canvas, lines: Sequence[Sequence[_Entry]], top: int) -> None:
    size = (120, 16)
    grey = Image.new("RGB", size, (128, 128, 128))
    ramp = np.broadcast_to(np.linspace(0, 1, size[0]), size[::-1])
    swatches = {
        "heat": _blend(grey, heat(ramp), np.full(ramp.shape, _OPAQUE)),
        "signed": _signed(grey, 2 * ramp - 1),
        "found": Image.new("RGB", size, PREDICTION),
    }
    for number, entries in enumerate(lines):
        for kind, text, left in entries:
            canvas.paste(swatches[kind], (left, top + 30 * number + 2))
            canvas.write((left + size[0] + 10, top + 30 * number), text, _NOTE, FAINT)
