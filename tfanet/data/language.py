"""Descriptions of objects in a scene: their meaning, and their wording.

A `Description` is a structure; `referents` finds the objects that it fits, with clear margins; `describe`
finds descriptions that fit one object of a scene only, and phrases them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from tfanet.data.scene import Scene, SceneObject

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
EXTREMES = {"leftmost": "left", "rightmost": "right", "topmost": "above", "bottommost": "below"}
SIDES = {"left": "left", "right": "right", "top": "above", "bottom": "below"}
RELATIONS = (*DIRECTIONS, "near")

_EXTREME_MARGIN, _SIDE_MARGIN, _CENTRE_MARGIN, _EDGE_MARGIN = 0.08, 0.2, 0.05, 0.03
_ALONG, _ASKEW = 1.2, 0.4
_NEARER, _NEAR_GAP = 1.35, 0.25


@dataclass(frozen=True)
class Description:
    """Attributes, then a relation to an anchor, then a place among the remaining objects; None is any.

    `place` is one of `EXTREMES` (the outermost) or of `SIDES` (the outermost, and in that half of the image);
    `relation` is one of `RELATIONS`, where `near` means the nearest, and close.
    """

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    relation: str | None = None
    anchor: Description | None = None
    place: str | None = None


@dataclass(frozen=True)
class Referents:
    """Indices of the objects that a description certainly fits, and of all that it possibly fits."""

    certain: frozenset[int]
    possible: frozenset[int]

    def is_only(self, index: int) -> bool:
        """Whether the description certainly fits this object, and possibly no other."""
        return self.certain == self.possible == {index}


def referents(scene: Scene, description: Description) -> Referents:
    """The objects of `scene` that `description` fits."""
    candidates = frozenset(i for i, obj in enumerate(scene.objects) if _has_attributes(obj, description))
    meaning = Referents(candidates, candidates)
    if description.relation and description.anchor:
        meaning = _related(scene, candidates, description.relation, referents(scene, description.anchor))
    if description.place:
        meaning = _placed(scene, meaning, description.place)
    return meaning


def _has_attributes(obj: SceneObject, description: Description) -> bool:
    return (
        description.size in (None, obj.appearance.size)
        and description.colour in (None, obj.appearance.colour)
        and description.shape in (None, obj.appearance.shape)
    )


def _related(scene: Scene, candidates: frozenset[int], relation: str, anchors: Referents) -> Referents:
    if len(anchors.possible) != 1 or anchors.certain != anchors.possible:
        return Referents(frozenset(), candidates)
    (anchor_index,) = anchors.certain
    others = candidates - {anchor_index}
    anchor = scene.objects[anchor_index]
    if relation == "near":
        return _nearest(scene, others, anchor)
    certain, possible = set(), set()
    for index in others:
        dx, dy = scene.objects[index].x - anchor.x, scene.objects[index].y - anchor.y
        right, down = DIRECTIONS[relation]
        along, across = dx * right + dy * down, abs(dx * down) + abs(dy * right)
        if along >= _ALONG * across:
            certain.add(index)
        if along >= _ASKEW * across:
            possible.add(index)
    return Referents(frozenset(certain), frozenset(possible))


def _nearest(scene: Scene, candidates: frozenset[int], anchor: SceneObject) -> Referents:
    def distance(index: int) -> float:
        return float(np.hypot(scene.objects[index].x - anchor.x, scene.objects[index].y - anchor.y))

    def gap(index: int) -> float:
        touching = scene.objects[index].radius + anchor.radius
        return (distance(index) - touching) / min(scene.width, scene.height)

    if not candidates:
        return Referents(candidates, candidates)
    best = min(candidates, key=distance)
    possible = frozenset(
        index
        for index in candidates
        if distance(index) < _NEARER * distance(best) or gap(index) < gap(best) + _EDGE_MARGIN
    )
    close = gap(best) <= _NEAR_GAP
    return Referents(frozenset({best}) if close and len(possible) == 1 else frozenset(), possible)


def _placed(scene: Scene, among: Referents, place: str) -> Referents:
    right, down = DIRECTIONS[EXTREMES.get(place) or SIDES[place]]
    side = scene.width if right else scene.height

    def reach(index: int) -> float:
        obj = scene.objects[index]
        return ((obj.x - scene.width / 2) * right + (obj.y - scene.height / 2) * down) / side

    def edge(index: int) -> float:
        return reach(index) + scene.objects[index].radius / side

    if not among.possible:
        return among
    best = max(among.possible, key=reach)
    margin = _EXTREME_MARGIN if place in EXTREMES else _SIDE_MARGIN
    possible = frozenset(
        index
        for index in among.possible
        if reach(index) > reach(best) - margin or edge(index) > edge(best) - _EDGE_MARGIN
    )
    clear = len(possible) == 1 and (place in EXTREMES or reach(best) > _CENTRE_MARGIN)
    return Referents(possible & among.certain if clear else frozenset(), possible)


def describe(
    rng: np.random.Generator, scene: Scene, target: int, level: str, count: int
) -> list[tuple[Description, str]]:
    """Up to `count` different expressions, each of which fits `scene.objects[target]` and no other object.

    Empty if there is no such description of this object at this `level`.
    """
    candidates = list(_candidates(scene, target, level))
    phrases: dict[str, Description] = {}
    for pick in rng.permutation(len(candidates)):
        description = candidates[pick]
        if referents(scene, description).is_only(target):
            phrases.setdefault(phrase(rng, description), description)
        if len(phrases) == count:
            break
    if phrases and len(phrases) < count:
        for description in list(phrases.values()):
            phrases.setdefault(phrase(rng, description), description)
    return [(description, text) for text, description in phrases.items()][:count]


def _candidates(scene: Scene, target: int, level: str) -> Iterator[Description]:
    """Descriptions to try: true attributes, with a place or relation only if the attributes are ambiguous."""
    attributes = _attribute_descriptions(scene, target)
    if level in ("shapes", "attributes"):
        yield from (description for description in attributes if description != Description())
        return
    ambiguous = [description for description in attributes if len(referents(scene, description).certain) > 1]
    if level == "all":
        ambiguous = [d for d in ambiguous if (d.size, d.colour, d.shape).count(None) <= 1]
    if level in ("positions", "all"):
        for description, place in product(ambiguous, (*EXTREMES, *SIDES)):
            yield replace(description, place=place)
    if level in ("relations", "all"):
        for anchor_index in range(len(scene.objects)):
            if anchor_index == target:
                continue
            anchors = list(_anchors(scene, anchor_index, level))
            for description, relation, anchor in product(ambiguous, RELATIONS, anchors):
                yield replace(description, relation=relation, anchor=anchor)


def _attribute_descriptions(scene: Scene, index: int) -> list[Description]:
    appearance = scene.objects[index].appearance
    sizes = (None, appearance.size) if len({obj.appearance.size for obj in scene.objects}) > 1 else (None,)
    return [
        Description(*words) for words in product(sizes, (None, appearance.colour), (None, appearance.shape))
    ]


def _anchors(scene: Scene, index: int, level: str) -> Iterator[Description]:
    """The fewest attributes that identify the anchor; at level `all` also a place among similar objects."""
    unique = [d for d in _attribute_descriptions(scene, index) if referents(scene, d).is_only(index)]
    shortest = min((_length(d) for d in unique), default=0)
    yield from (d for d in unique if _length(d) == shortest)
    if level == "all" and not unique:
        appearance = scene.objects[index].appearance
        for place in EXTREMES:
            description = Description(colour=appearance.colour, shape=appearance.shape, place=place)
            if referents(scene, description).is_only(index):
                yield description


def _length(description: Description) -> int:
    return 3 - (description.size, description.colour, description.shape).count(None)


_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
_EXTREME_PHRASES = {
    "leftmost": ("{the}leftmost {np}", "{the}{np} furthest left"),
    "rightmost": ("{the}rightmost {np}", "{the}{np} furthest right"),
    "topmost": ("{the}topmost {np}", "{the}highest {np}", "{the}uppermost {np}"),
    "bottommost": ("{the}bottommost {np}", "{the}lowest {np}"),
}
_SIDE_PHRASES = {
    "left": ("{the}{np} on the left", "{the}left {np}", "{np} on left", "left {np}", "{np} left side"),
    "right": ("{the}{np} on the right", "{the}right {np}", "{np} on right", "right {np}", "{np} right side"),
    "top": ("{the}{np} at the top", "{the}top {np}", "{np} at top", "top {np}"),
    "bottom": ("{the}{np} at the bottom", "{the}bottom {np}", "{np} at bottom", "bottom {np}"),
}
_RELATION_WORDS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "near": ("next to", "closest to", "nearest to"),
}


def phrase(rng: np.random.Generator, description: Description) -> str:
    """`description` in words, at random, lower case, in at most 15 CLIP tokens without SOT and EOT."""
    the = "the " if rng.random() < 0.6 else ""
    if description.relation and description.anchor:
        target = replace(description, relation=None, anchor=None)
        relation = rng.choice(_RELATION_WORDS[description.relation])
        anchor = _placed_phrase(rng, description.anchor, "the ")
        return f"{_placed_phrase(rng, target, the)} {relation} {anchor}"
    if not the and description.size and not description.place and rng.random() < 0.4:
        size, _, rest = _noun_phrase(rng, description).partition(" ")
        return f"{rest} {size}"
    return _placed_phrase(rng, description, the)


def _placed_phrase(rng: np.random.Generator, description: Description, the: str) -> str:
    words = _noun_phrase(rng, description)
    if description.place is None:
        return the + words
    patterns = _EXTREME_PHRASES.get(description.place) or _SIDE_PHRASES[description.place]
    return str(rng.choice(patterns)).format(the=the, np=words)


def _noun_phrase(rng: np.random.Generator, description: Description) -> str:
    size = rng.choice(_SIZE_WORDS[description.size]) if description.size else None
    pronouns = ("one", "one", "object", "thing") if size or description.colour else ("object", "thing")
    noun = description.shape or rng.choice(pronouns)
    return " ".join(str(word) for word in (size, description.colour, noun) if word)
