"""What a description means in a scene, and how people may say it.

A description is a structure; `referents` is its meaning, with clear margins; `describe` finds descriptions
that fit one thing of a scene and nothing else, and says them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from tfanet.data.scene import Scene, Thing

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
EXTREMES = {"leftmost": "left", "rightmost": "right", "topmost": "above", "bottommost": "below"}
SIDES = {"left": "left", "right": "right", "top": "above", "bottom": "below"}
RELATIONS = (*DIRECTIONS, "near")

_EXTREME_MARGIN, _SIDE_MARGIN, _CENTRE_MARGIN, _EDGE_MARGIN = 0.08, 0.2, 0.05, 0.03
_ALONG, _ASKEW = 1.2, 0.4
_NEARER, _NEAR_GAP = 1.35, 0.25


@dataclass(frozen=True)
class Description:
    """Attributes, then a relation to an anchor, then a place among what is left; None says nothing.

    `place` is one of `EXTREMES` (the outermost) or of `SIDES` (the outermost, and in that half of the
    picture); `relation` one of `RELATIONS`, where `near` means the nearest, and not far.
    """

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    relation: str | None = None
    anchor: Description | None = None
    place: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Indices of the things that a description fits `certain`ly, and of all that it might fit."""

    certain: frozenset[int]
    possible: frozenset[int]

    def is_only(self, index: int) -> bool:
        """Whether the description fits this thing, and clearly no other."""
        return self.certain == self.possible == {index}


def referents(scene: Scene, description: Description) -> Verdict:
    """The meaning of `description` in `scene`."""
    fitting = frozenset(i for i, thing in enumerate(scene.things) if _has_attributes(thing, description))
    verdict = Verdict(fitting, fitting)
    if description.relation and description.anchor:
        verdict = _related(scene, fitting, description.relation, referents(scene, description.anchor))
    if description.place:
        verdict = _placed(scene, verdict, description.place)
    return verdict


def _has_attributes(thing: Thing, description: Description) -> bool:
    return (
        description.size in (None, thing.kind.size)
        and description.colour in (None, thing.kind.colour)
        and description.shape in (None, thing.kind.shape)
    )


def _related(scene: Scene, fitting: frozenset[int], relation: str, anchors: Verdict) -> Verdict:
    if len(anchors.possible) != 1 or anchors.certain != anchors.possible:
        return Verdict(frozenset(), fitting)
    (anchor_index,) = anchors.certain
    others = fitting - {anchor_index}
    anchor = scene.things[anchor_index]
    if relation == "near":
        return _nearest(scene, others, anchor)
    certain, possible = set(), set()
    for index in others:
        dx, dy = scene.things[index].x - anchor.x, scene.things[index].y - anchor.y
        right, down = DIRECTIONS[relation]
        along, across = dx * right + dy * down, abs(dx * down) + abs(dy * right)
        if along >= _ALONG * across:
            certain.add(index)
        if along >= _ASKEW * across:
            possible.add(index)
    return Verdict(frozenset(certain), frozenset(possible))


def _nearest(scene: Scene, candidates: frozenset[int], anchor: Thing) -> Verdict:
    def distance(index: int) -> float:
        return float(np.hypot(scene.things[index].x - anchor.x, scene.things[index].y - anchor.y))

    def gap(index: int) -> float:
        touching = scene.things[index].radius + anchor.radius
        return (distance(index) - touching) / min(scene.width, scene.height)

    if not candidates:
        return Verdict(candidates, candidates)
    best = min(candidates, key=distance)
    possible = frozenset(
        index
        for index in candidates
        if distance(index) < _NEARER * distance(best) or gap(index) < gap(best) + _EDGE_MARGIN
    )
    close = gap(best) <= _NEAR_GAP
    return Verdict(frozenset({best}) if close and len(possible) == 1 else frozenset(), possible)


def _placed(scene: Scene, among: Verdict, place: str) -> Verdict:
    right, down = DIRECTIONS[EXTREMES.get(place) or SIDES[place]]
    side = scene.width if right else scene.height

    def reach(index: int) -> float:
        thing = scene.things[index]
        return ((thing.x - scene.width / 2) * right + (thing.y - scene.height / 2) * down) / side

    def edge(index: int) -> float:
        return reach(index) + scene.things[index].radius / side

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
    return Verdict(possible & among.certain if clear else frozenset(), possible)


def describe(
    rng: np.random.Generator, scene: Scene, target: int, level: str, count: int
) -> list[tuple[Description, str]]:
    """Up to `count` different sentences, each true of `scene.things[target]` and clearly of nothing else.

    Empty when the `level` has no such description for this thing.
    """
    candidates = list(_candidates(scene, target, level))
    found: dict[str, Description] = {}
    for pick in rng.permutation(len(candidates)):
        description = candidates[pick]
        if referents(scene, description).is_only(target):
            found.setdefault(phrase(rng, description), description)
        if len(found) == count:
            break
    if found and len(found) < count:
        for description in list(found.values()):
            found.setdefault(phrase(rng, description), description)
    return [(description, sentence) for sentence, description in found.items()][:count]


def _candidates(scene: Scene, target: int, level: str) -> Iterator[Description]:
    """Descriptions worth trying: true attributes, and no word of place or relation that adds nothing."""
    plain = _attribute_descriptions(scene, target)
    if level in ("shapes", "attributes"):
        yield from (description for description in plain if description != Description())
        return
    vague = [description for description in plain if len(referents(scene, description).certain) > 1]
    if level == "all":
        vague = [d for d in vague if (d.size, d.colour, d.shape).count(None) <= 1]
    if level in ("positions", "all"):
        for description, place in product(vague, (*EXTREMES, *SIDES)):
            yield replace(description, place=place)
    if level in ("relations", "all"):
        for anchor_index in range(len(scene.things)):
            if anchor_index == target:
                continue
            anchors = list(_anchors(scene, anchor_index, level))
            for description, relation, anchor in product(vague, RELATIONS, anchors):
                yield replace(description, relation=relation, anchor=anchor)


def _attribute_descriptions(scene: Scene, index: int) -> list[Description]:
    kind = scene.things[index].kind
    sizes = (None, kind.size) if len({thing.kind.size for thing in scene.things}) > 1 else (None,)
    return [Description(*words) for words in product(sizes, (None, kind.colour), (None, kind.shape))]


def _anchors(scene: Scene, index: int, level: str) -> Iterator[Description]:
    """The shortest attributes that name the anchor; at level `all` also a place among its like."""
    named = [d for d in _attribute_descriptions(scene, index) if referents(scene, d).is_only(index)]
    shortest = min((_length(d) for d in named), default=0)
    yield from (d for d in named if _length(d) == shortest)
    if level == "all" and not named:
        kind = scene.things[index].kind
        for place in EXTREMES:
            description = Description(colour=kind.colour, shape=kind.shape, place=place)
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
    """One of the ways to say `description`, lower case, in at most 15 CLIP tokens without SOT and EOT."""
    the = "the " if rng.random() < 0.6 else ""
    if description.relation and description.anchor:
        told = replace(description, relation=None, anchor=None)
        relation = rng.choice(_RELATION_WORDS[description.relation])
        anchor = _placed_phrase(rng, description.anchor, "the ")
        return f"{_placed_phrase(rng, told, the)} {relation} {anchor}"
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
