"""The figure of a model's maps for one image and expression, drawn with matplotlib."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from tfanet.data.preprocess import logits_to_size
from tfanet.visualize import FAINT, INK, PAPER, overlay

if TYPE_CHECKING:
    from tfanet_eval.maps.trace import Maps

HEAT = ListedColormap(colormaps["inferno"](np.linspace(0.1, 1, 256), alpha=0.75))
"""Low to high in even steps of lightness; the grey image shows through."""
SIGNED = LinearSegmentedColormap.from_list(
    "signed", [(0, "#1478dcee"), (0.5, "#1478dc00"), (0.5, "#f56e1400"), (1, "#f56e14ee")], N=255
)
"""Blue below 0, orange above, transparent at 0."""

_FAINT, _INK, _PAPER = ("#{:02x}{:02x}{:02x}".format(*rgb) for rgb in (FAINT, INK, PAPER))
# Lengths and font sizes are in pixels: at 72 dots per inch a point is a pixel.
_MARGIN, _SEAM, _GAP, _LABELS, _HEADING, _LINE, _KEY = 32, 8, 28, 100, 50, 36, 450
_TITLE, _TEXT, _NOTE = 26, 17, 13
_SIDE, _LONGEST = 160, 256
"""A map has about `_SIDE` squared pixels, and no side longer than `_LONGEST`."""
_MIN_WIDTH, _MIN_HEIGHT = 118, 76
"""The smallest width of a column and height of a row, so that headings and stage labels have room."""
_WORDS_BESIDE = 6
"""Words to the right of the stage maps; more words go into blocks below."""


@dataclass(frozen=True)
class Column:
    """One kind of map: its headings, then for each stage the values [H, W], their scale and a tag."""

    source: str
    title: str
    values: Sequence[np.ndarray]
    scales: Sequence[Normalize]
    colours: Colormap
    tags: Sequence[str] = ("",) * 4


def stage_columns(maps: Maps) -> list[Column]:
    """|F_LV|, |F_F| and M_j, each map on its own scale; without those that the model does not have."""
    aligned = [stage.aligned for stage in maps.stages if stage.aligned is not None]
    fused = [stage.fused for stage in maps.stages]
    masks = [stage.mask for stage in maps.stages if stage.mask is not None]
    columns = [
        Column("KPS, eq. 15", "$|F_{LV}|$", aligned, [_own_scale(values) for values in aligned], HEAT),
        Column("KFS, eq. 22", "$|F_F|$", fused, [_own_scale(values) for values in fused], HEAT),
        Column(
            "KIS, eq. 25-26", "read from $M_j$", masks, [_own_scale(values, 0.0) for values in masks], HEAT,
            [f"$M_{len(masks) - i}$" for i in range(len(masks))],
        ),
    ]  # fmt: skip
    return [column for column in columns if column.values]


def word_columns(maps: Maps) -> list[Column]:
    """F_f of every word; the words of a stage share one scale, symmetric about 0."""
    stacks = [stage.words for stage in maps.stages if stage.words is not None and len(stage.words)]
    limits = [float(np.percentile(np.abs(stack), 99)) or 1.0 for stack in stacks]
    scales = [Normalize(-limit, limit) for limit in limits]
    return [
        Column("KPS, eq. 16: $F_f$", word, [stack[n] for stack in stacks], scales, SIGNED)
        for n, word in enumerate(maps.words if stacks else ())
    ]


def _own_scale(values: np.ndarray, low: float | None = None) -> Normalize:
    """From `low`, or the lowest value, to the highest, without outliers."""
    lowest = float(np.percentile(values, 1)) if low is None else low
    return Normalize(lowest, max(lowest, float(np.percentile(values, 99.5))))


def map_sheet(image: Image.Image, expression: str, maps: Maps) -> Image.Image:
    """`map_figure` as an RGB image."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # such a character is drawn as a box
        canvas = FigureCanvasAgg(map_figure(image, expression, maps))
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def map_figure(image: Image.Image, expression: str, maps: Maps) -> Figure:
    """Image and prediction; then stages by rows and |F_LV|, |F_F|, M_j and each word's F_f by columns.

    The `Axes` of a map are labelled with row and title, as in "2 red", and hold the grey image and the map.
    """
    size = _map_size(image.size)
    across, down = max(size[0], _MIN_WIDTH) + _SEAM, max(size[1], _MIN_HEIGHT) + _SEAM
    columns, words = stage_columns(maps), word_columns(maps)
    first = columns + words[:_WORDS_BESIDE]
    room = _LABELS + (2 + len(first)) * across + _GAP * bool(words)
    per_block = (room - _LABELS) // across
    starts = [*range(_WORDS_BESIDE, len(words), per_block), len(words)]
    blocks = [first, *(words[start:end] for start, end in pairwise(starts))]
    title = textwrap.wrap(f"“{' '.join(expression.split())}”", int(room / (0.6 * _TITLE)))
    from_zero = " ($M_j$ from 0)" if maps.stages[0].mask is not None else ""
    keys = [(f"low to high, each map by itself{from_zero}", HEAT)]
    keys += [("negative, 0, positive: each stage by itself", SIGNED)] if words else []
    keys_per_row = max(1, room // _KEY)

    block = _HEADING + len(maps.stages) * down + _GAP
    top = _MARGIN + _LINE * len(title)
    bottom = top + block * len(blocks)
    sheet = _Sheet(room + 2 * _MARGIN, bottom + 28 * -(-len(keys) // keys_per_row) + _MARGIN // 2)
    for number, line in enumerate(title):
        sheet.text(_MARGIN, _MARGIN - 6 + _LINE * number, line, _TITLE, room=room, parse_math=False)
    _draw_images(sheet, image, maps, size, top + _HEADING, 2 * down)
    grey = _grey(image, size)
    for number, members in enumerate(blocks):
        left, head = _MARGIN + (0 if number else 2 * across), top + number * block
        _draw_labels(sheet, maps, left, head + _HEADING, down)
        for place, column in enumerate(members):
            gap = _GAP if number == 0 and place >= len(columns) else 0
            _draw_column(sheet, column, grey, left + _LABELS + place * across + gap, head, down)
    for number, (text, colours) in enumerate(keys):
        row, place = divmod(number, keys_per_row)
        _draw_key(sheet, colours, text, _MARGIN + place * _KEY, bottom + 28 * row)
    return sheet.figure


class _Sheet:
    """A figure in which everything is placed by its left and top edge in pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure((width / 72, height / 72), dpi=72, facecolor=_PAPER)
        FigureCanvasAgg(self.figure)  # to measure text

    def axes(self, left: float, top: float, size: tuple[int, int], label: str) -> Axes:
        """Axes of `size` (width, height) without ticks, in pixels from the upper left corner."""
        (width, height), bottom = size, self.height - top - size[1]
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box, label=label, xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        return axes

    def text(
        self, left: float, top: float, text: str, size: int, colour: str = _INK, *, room: float, **more: Any
    ) -> None:
        """One line; a smaller font keeps it within `room` pixels."""
        place = (left / self.width, 1 - top / self.height)
        line = self.figure.text(*place, text, size=size, color=colour, va="top", **more)
        line.set_fontsize(size * min(1.0, 0.98 * room / line.get_window_extent().width))


def _draw_images(
    sheet: _Sheet, image: Image.Image, maps: Maps, size: tuple[int, int], top: float, step: float
) -> None:
    """The image, and `step` pixels below it the image with the predicted mask; each covers 2 x 2 maps."""
    size = (2 * size[0] + _SEAM // 2, 2 * size[1] + _SEAM)
    large = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    mask = logits_to_size(maps.logits, size[1], size[0]) > 0
    for number, (label, drawn) in enumerate((("image", large), ("prediction", overlay(large, mask)))):
        axes = sheet.axes(_MARGIN, top + number * step, size, label)
        axes.imshow(np.asarray(drawn), aspect="auto")
        _tag(axes, label)


def _draw_column(sheet: _Sheet, column: Column, grey: np.ndarray, left: float, top: float, down: int) -> None:
    """The headings, and below them one map for each stage."""
    height, width = grey.shape
    room, word, title = max(width, _MIN_WIDTH), column.colours is SIGNED, column.title
    if word and len(title) > room // 8:
        title = f"{title[: room // 8]}…"
    sheet.text(left, top, column.source, _NOTE, _FAINT, room=room)
    sheet.text(left, top + 20, title, _TEXT, room=room, parse_math=not word)
    for row, (values, scale, tag) in enumerate(zip(column.values, column.scales, column.tags, strict=True)):
        axes = sheet.axes(left, top + _HEADING + row * down, (width, height), f"{row + 1} {column.title}")
        _imshow(axes, grey, "gray", Normalize(0, 255))
        _imshow(axes, values, column.colours, scale)
        _tag(axes, tag)


def _draw_labels(sheet: _Sheet, maps: Maps, left: float, top: float, down: int) -> None:
    """Each row's stage, its stride and the size of its maps."""
    for row, stage in enumerate(maps.stages):
        height, width = stage.fused.shape
        sheet.text(left, top + row * down, f"stage {row + 1}", _TEXT, room=_LABELS)
        note = f"stride {stage.stride}\n{width} × {height}"
        sheet.text(left, top + row * down + 26, note, _NOTE, _FAINT, room=_LABELS)


def _draw_key(sheet: _Sheet, colours: Colormap, text: str, left: float, top: float) -> None:
    axes = sheet.axes(left, top, (120, 16), "key")
    _imshow(axes, np.full((1, 1), 128), "gray", Normalize(0, 255))
    _imshow(axes, np.linspace(0, 1, 256)[None], colours, Normalize(0, 1))
    sheet.text(left + 130, top + 1, text, _NOTE, _FAINT, room=_KEY - 150)


def _imshow(axes: Axes, values: np.ndarray, colours: str | Colormap, scale: Normalize) -> None:
    box = (*axes.get_xlim(), *axes.get_ylim())
    axes.imshow(values, colours, scale, extent=box, aspect="auto", interpolation="bicubic")


def _tag(axes: Axes, text: str) -> None:
    """A light label in the upper left corner."""
    if text:
        box = {"boxstyle": "round", "facecolor": _PAPER, "edgecolor": "none"}
        axes.text(9, 9, text, va="top", size=_NOTE, color=_INK, bbox=box)


def _map_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the maps of an image of `size`."""
    ratio = math.sqrt(size[0] / size[1])
    width, height = _SIDE * ratio, _SIDE / ratio
    shrink = min(1.0, _LONGEST / max(width, height))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def _grey(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The image in grey, float [H, W], 0..255, mean about 128: colours read alike over dark and bright."""
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.LANCZOS), dtype=float)
    return (128 + 0.8 * (grey - grey.mean())).clip(0, 255)
