"""Random scenes: coloured shapes of two sizes that do not touch. Geometry only, no pixels.

The first object of a scene is its referent. The others are distractors for a model that reads only part of
the expression: copies of the referent, objects that differ in one attribute, and random ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

SIZES = ("small", "large")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 42),
    "orange": (245, 134, 24),
    "yellow": (245, 216, 48),
    "green": (46, 158, 66),
    "blue": (40, 92, 214),
    "purple": (128, 52, 176),
    "pink": (246, 132, 186),
    "white": (244, 244, 240),
}
DEFAULT_LEVELS = ("attributes", "positions", "relations", "all")
LEVELS = ("shapes", *DEFAULT_LEVELS)
"""Language levels. `shapes` is for training only: objects of one size and colour and different shapes."""

_RADIUS = {"small": (0.075, 0.090), "large": (0.145, 0.175)}
_MARGIN = 3.0
_ATTRIBUTES = ("colour", "shape", "size")


def _regular(corners: int, start: float, reach: float) -> list[tuple[float, float]]:
    angles = [start + 2 * pi * corner / corners for corner in range(corners)]
    return [(reach * cos(angle), reach * sin(angle)) for angle in angles]


def _star() -> list[tuple[float, float]]:
    outer, inner = _regular(5, -pi / 2, 1.3), _regular(5, -pi / 2 + pi / 5, 0.56)
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


def _cross() -> list[tuple[float, float]]:
    arm, half = 1.12, 0.38
    quarter = [(half, -arm), (half, -half), (arm, -half)]
    turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    return [(x * c - y * s, x * s + y * c) for c, s in turns for x, y in quarter]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * pi * step / 40 for step in range(40)]
    return [
        (
            1.1 * sin(angle) ** 3,
            -(13 * cos(angle) - 5 * cos(2 * angle) - 2 * cos(3 * angle) - cos(4 * angle)) / 14.5 - 0.1,
        )
        for angle in angles
    ]


_OUTLINES: dict[str, np.ndarray] = {
    "circle": np.array(_regular(48, 0.0, 1.0)),
    "square": np.array(_regular(4, pi / 4, 1.24)),
    "triangle": np.array(_regular(3, -pi / 2, 1.3)),
    "star": np.array(_star()),
    "cross": np.array(_cross()),
    "heart": np.array(_heart()),
}
SHAPES = tuple(_OUTLINES)


@dataclass(frozen=True)
class Appearance:
    """Size, colour and shape of an object: one each of `SIZES`, `COLOURS` and `SHAPES`."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class SceneObject:
    """One object: its appearance, position and radius (pixels), angle (radians) and colour (RGB 0..255)."""

    appearance: Appearance
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]

    def polygon(self) -> np.ndarray:
        """The outline, float64 `[n, 2]` in pixels (x to the right, y down; pixel (0, 0) spans 0..1)."""
        turn = np.array([[cos(self.angle), sin(self.angle)], [-sin(self.angle), cos(self.angle)]])
        return np.round(self.radius * _OUTLINES[self.appearance.shape] @ turn + (self.x, self.y), 2)


@dataclass(frozen=True)
class Scene:
    """An image's size in pixels and its 3 to 6 objects; `objects[0]` is the referent."""

    width: int
    height: int
    objects: tuple[SceneObject, ...]


def sample_scene(rng: np.random.Generator, level: str, shapes: Sequence[str] = SHAPES) -> Scene:
    """A random scene whose referent has one of `shapes`, with distractors for the language `level`."""
    width, height = (int(side) for side in rng.integers(112, 177, size=2))
    objects = None
    while objects is None:
        objects = _place(rng, _choose_objects(rng, level, shapes), width, height)
    return Scene(width, height, objects)


def _choose_objects(rng: np.random.Generator, level: str, shapes: Sequence[str]) -> list[Appearance]:
    """The appearance of the referent, then of its distractors, then of random objects."""
    referent = _random_appearance(rng, shapes)
    chosen = [referent]
    if level == "shapes":
        others = rng.permutation([shape for shape in SHAPES if shape != referent.shape])[: rng.integers(2, 4)]
        return chosen + [Appearance(referent.size, referent.colour, str(shape)) for shape in others]
    if level == "attributes":
        differences = rng.permutation(_ATTRIBUTES)[: rng.integers(2, 4)]
    else:
        chosen += [referent if rng.random() < 0.7 else _vary(rng, referent, "size")] * int(rng.integers(1, 3))
        differences = rng.permutation(_ATTRIBUTES)[: rng.integers(0, 3)]
    chosen += [_vary(rng, referent, str(attribute)) for attribute in differences]
    total = max(len(chosen), int(rng.integers(3, 7)))
    while len(chosen) < total:
        extra = _random_appearance(rng, SHAPES)
        if extra != referent:
            chosen.append(extra)
    return chosen


def _random_appearance(rng: np.random.Generator, shapes: Sequence[str]) -> Appearance:
    return Appearance(str(rng.choice(SIZES)), str(rng.choice(list(COLOURS))), str(rng.choice(shapes)))


def _vary(rng: np.random.Generator, appearance: Appearance, attribute: str) -> Appearance:
    """`appearance` with this attribute changed."""
    words = {"size": SIZES, "colour": tuple(COLOURS), "shape": SHAPES}[attribute]
    values = {"size": appearance.size, "colour": appearance.colour, "shape": appearance.shape}
    values[attribute] = str(rng.choice([word for word in words if word != values[attribute]]))
    return Appearance(**values)


def _place(
    rng: np.random.Generator, appearances: list[Appearance], width: int, height: int
) -> tuple[SceneObject, ...] | None:
    """Objects that touch neither each other nor the border; None if they do not fit."""
    placed: dict[int, SceneObject] = {}
    large_first = sorted(range(len(appearances)), key=lambda index: appearances[index].size != "large")
    for index in large_first:
        low, high = _RADIUS[appearances[index].size]
        radius = float(rng.uniform(low, high)) * min(width, height)
        reach = _reach(appearances[index].shape) * radius + _MARGIN
        for _ in range(40):
            x, y = float(rng.uniform(reach, width - reach)), float(rng.uniform(reach, height - reach))
            gaps = (
                np.hypot(x - o.x, y - o.y) - _reach(o.appearance.shape) * o.radius for o in placed.values()
            )
            if all(gap > reach for gap in gaps):
                break
        else:
            return None
        angle = float(rng.uniform(-0.2, 0.2))
        rgb = _tint(rng, appearances[index].colour)
        placed[index] = SceneObject(appearances[index], x, y, radius, angle, rgb)
    return tuple(placed[index] for index in range(len(appearances)))


def _reach(shape: str) -> float:
    return float(np.hypot(*_OUTLINES[shape].T).max())


def _tint(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    """The named colour with random changes of brightness and hue."""
    tinted = np.array(COLOURS[colour]) * rng.uniform(0.93, 1.05) + rng.uniform(-8, 8, 3)
    red, green, blue = (int(channel) for channel in np.clip(tinted, 0, 255))
    return red, green, blue
