"""Every expression fits exactly its object: by its structure, and by an independent parser of its text."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tfanet.data.language import Description, referents
from tfanet.data.preprocess import tokenize
from tfanet.data.scene import COLOURS, LEVELS, SHAPES, SIZES, Appearance, Scene, SceneObject
from tfanet.data.shapes import Sample, make_sample

SAMPLES = 250
SYNONYMS = {"little": "small", "tiny": "small", "big": "large"}
PRONOUNS = {"one", "object", "thing", "the"}
RELATION = re.compile(
    r"^(?P<target>.+?) (?:(?:to the |on the )?(?P<side>left|right) of"
    r"|(?P<other>above|over|below|under|beneath|next to|closest to|nearest to)) (?P<anchor>the .+)$"
)
PLACES = [
    (
        re.compile(r"^(?:the )?(leftmost|rightmost|topmost|highest|uppermost|bottommost|lowest) (.+)$"),
        "extreme",
    ),
    (re.compile(r"^(?P<np>.+) furthest (?P<place>left|right)$"), "extreme"),
    (re.compile(r"^(?P<np>.+) (?:on|at) (?:the )?(?P<place>left|right|top|bottom)$"), "side"),
    (re.compile(r"^(?P<np>.+) (?P<place>left|right) side$"), "side"),
    (re.compile(r"^(?:the )?(left|right|top|bottom) (.+)$"), "side"),
]
AXIS = {
    **dict.fromkeys(("leftmost", "left"), (-1, 0)),
    **dict.fromkeys(("rightmost", "right"), (1, 0)),
    **dict.fromkeys(("topmost", "highest", "uppermost", "top", "above", "over"), (0, -1)),
    **dict.fromkeys(("bottommost", "lowest", "bottom", "below", "under", "beneath"), (0, 1)),
}


def parse(text: str, scene: Scene) -> list[SceneObject]:
    """The objects that `text` describes: an independent parser without margins."""
    if match := RELATION.match(text):
        (anchor,) = parse(match["anchor"], scene)
        candidates = [obj for obj in parse_place(match["target"], scene) if obj is not anchor]
        word = match["side"] or match["other"]
        if word not in AXIS:
            return [min(candidates, key=lambda obj: (obj.x - anchor.x) ** 2 + (obj.y - anchor.y) ** 2)]
        right, down = AXIS[word]
        steps = [(obj, obj.x - anchor.x, obj.y - anchor.y) for obj in candidates]
        return [obj for obj, dx, dy in steps if dx * right + dy * down > max(abs(dx * down), abs(dy * right))]
    return parse_place(text, scene)


def parse_place(text: str, scene: Scene) -> list[SceneObject]:
    for pattern, sort in PLACES:
        if match := pattern.match(text):
            named = "np" in pattern.groupindex
            place, rest = (match["place"], match["np"]) if named else (match[1], match[2])
            right, down = AXIS[place]
            best = max(parse_attributes(rest, scene), key=lambda obj: obj.x * right + obj.y * down)
            middle = (scene.width * right + scene.height * down) / 2
            assert sort == "extreme" or best.x * right + best.y * down > middle, f"{text}: in the wrong half"
            return [best]
    return parse_attributes(text, scene)


def parse_attributes(text: str, scene: Scene) -> list[SceneObject]:
    words = {SYNONYMS.get(word, word) for word in text.split()} - PRONOUNS
    assert words <= {*SIZES, *COLOURS, *SHAPES}, f"unknown words in {text!r}"
    return [t for t in scene.objects if words <= {t.appearance.size, t.appearance.colour, t.appearance.shape}]


@pytest.fixture(scope="module", params=LEVELS)
def level_and_samples(request: pytest.FixtureRequest) -> tuple[str, list[Sample]]:
    level = request.param
    return level, [make_sample(3, "train", index, (level,)) for index in range(SAMPLES)]


def expressions_of(samples: list[Sample]) -> list[tuple[Scene, int, Description, str]]:
    return [
        (sample.scene, referent.index, description, text)
        for sample in samples
        for referent in sample.referents
        for description, text in referent.expressions
    ]


def test_text_means_exactly_the_referent(level_and_samples: tuple[str, list[Sample]]) -> None:
    expressions = expressions_of(level_and_samples[1])
    wrong = [text for scene, index, _, text in expressions if parse(text, scene) != [scene.objects[index]]]
    assert wrong == []
    assert len(expressions) > 3 * SAMPLES


def test_description_means_exactly_the_referent(level_and_samples: tuple[str, list[Sample]]) -> None:
    for scene, index, description, text in expressions_of(level_and_samples[1]):
        assert referents(scene, description).is_only(index), text


def test_expressions_fit_in_17_tokens(level_and_samples: tuple[str, list[Sample]]) -> None:
    tokenize([text for *_, text in expressions_of(level_and_samples[1])], 17, strict=True)


def test_level_determines_the_words(level_and_samples: tuple[str, list[Sample]]) -> None:
    level, samples = level_and_samples
    expressions = [description for _, _, description, _ in expressions_of(samples)]
    related = sum(d.relation is not None for d in expressions)
    placed = sum(d.place is not None for d in expressions)
    expected = {
        "shapes": related == placed == 0 and all(d.shape for d in expressions),
        "attributes": related == placed == 0,
        "positions": related == 0 and placed == len(expressions),
        "relations": related == len(expressions) and placed == 0,
        "all": related + placed == len(expressions) and min(related, placed) > len(expressions) / 10,
    }
    assert expected[level], (related, placed, len(expressions))


def test_every_scene_has_a_distractor_that_differs_in_at_most_one_attribute(
    level_and_samples: tuple[str, list[Sample]],
) -> None:
    for sample in level_and_samples[1]:
        first, *others = (obj.appearance for obj in sample.scene.objects)
        different = [
            (k.size != first.size) + (k.colour != first.colour) + (k.shape != first.shape) for k in others
        ]
        assert min(different) <= 1


def test_expressions_vary(level_and_samples: tuple[str, list[Sample]]) -> None:
    expressions = [text for *_, text in expressions_of(level_and_samples[1])]
    assert len(set(expressions)) > min(len(expressions) / 4, 100)
    assert 0.3 < sum(text.startswith("the ") for text in expressions) / len(expressions) < 0.9


def scene_of(*placed: tuple[str, float, float]) -> Scene:
    """A 100 x 100 scene of red objects, `("small circle", x, y)` each."""
    objects = []
    for words, x, y in placed:
        size, shape = words.split()
        objects.append(SceneObject(Appearance(size, "red", shape), x, y, 8.0, 0.0, (214, 38, 42)))
    return Scene(100, 100, tuple(objects))


CIRCLE = Description(shape="circle")
STAR = Description(shape="star")


@pytest.mark.parametrize(
    ("scene", "description", "certain", "possible"),
    [
        pytest.param(
            scene_of(("small circle", 10, 50), ("small circle", 60, 50)),
            Description(shape="circle", place="leftmost"),
            {0},
            {0},
            id="leftmost",
        ),
        pytest.param(
            scene_of(("small circle", 50, 10), ("small circle", 55, 80)),
            Description(shape="circle", place="leftmost"),
            set(),
            {0, 1},
            id="leftmost within the margin",
        ),
        pytest.param(
            scene_of(("small circle", 65, 50), ("small circle", 90, 50)),
            Description(shape="circle", place="left"),
            set(),
            {0},
            id="outermost left but in the right half",
        ),
        pytest.param(
            scene_of(("small circle", 20, 20), ("small star", 60, 20), ("small circle", 85, 22)),
            Description(shape="circle", relation="left", anchor=STAR),
            {0},
            {0},
            id="left of",
        ),
        pytest.param(
            scene_of(("small circle", 20, 20), ("small star", 60, 60)),
            Description(shape="circle", relation="left", anchor=STAR),
            set(),
            {0},
            id="diagonally left of is unclear",
        ),
        pytest.param(
            scene_of(("small circle", 20, 50), ("small star", 50, 50), ("small star", 80, 50)),
            Description(shape="circle", relation="left", anchor=STAR),
            set(),
            {0},
            id="anchor not unique",
        ),
        pytest.param(
            scene_of(("small circle", 30, 50), ("small star", 50, 50), ("small circle", 90, 50)),
            Description(shape="circle", relation="near", anchor=STAR),
            {0},
            {0},
            id="near",
        ),
        pytest.param(
            scene_of(("small circle", 30, 50), ("small star", 50, 50), ("small circle", 72, 50)),
            Description(shape="circle", relation="near", anchor=STAR),
            set(),
            {0, 2},
            id="equally near",
        ),
        pytest.param(
            scene_of(("small circle", 10, 10), ("small star", 90, 90)),
            Description(shape="circle", relation="near", anchor=STAR),
            set(),
            {0},
            id="nearest but far",
        ),
        pytest.param(
            scene_of(("small star", 10, 10)),
            Description(shape="circle", place="top"),
            set(),
            set(),
            id="none",
        ),
    ],
)
def test_meaning(scene: Scene, description: Description, certain: set[int], possible: set[int]) -> None:
    meaning = referents(scene, description)
    assert (meaning.certain, meaning.possible) == (certain, possible)


def test_objects_do_not_touch_each_other_or_the_border() -> None:
    for index in range(100):
        scene = make_sample(5, "val", index, LEVELS).scene
        assert 3 <= len(scene.objects) <= 6
        outlines = [obj.polygon() for obj in scene.objects]
        for number, outline in enumerate(outlines):
            assert outline.min() > 0
            assert (outline.max(axis=0) < (scene.width, scene.height)).all()
            for other in outlines[:number]:
                assert np.linalg.norm(outline[:, None] - other[None], axis=2).min() > 2
