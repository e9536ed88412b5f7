"""What the maps of a model's inside hold, and the figure that is drawn of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

import tfanet
from tfanet.config import VARIANTS
from tfanet.data.preprocess import tokenize
from tfanet.data.shapes import render_pair
from tfanet.errors import UserError
from tfanet.layers import resize
from tfanet.visualize import PAPER
from tfanet_eval.maps.canvas import Canvas, fit, symbol_width, wrap
from tfanet_eval.maps.sheet import heat, map_sheet
from tfanet_eval.maps.trace import Maps, StageMaps, spell, trace

SENTENCE = "the overexposed circle, left"


@pytest.fixture(scope="module")
def picture():
    return render_pair(seed=0, index=0)[0]


@pytest.fixture(scope="module")
def maps(random_model, picture):
    return trace(random_model, picture, SENTENCE)


@pytest.mark.parametrize(
    ("sentence", "words", "places"),
    [
        ("red circle", ("red", "circle"), [[1], [2]]),
        (SENTENCE, ("the", "overexposed", "circle", "left"), [[1], [2, 3, 4], [5], [7]]),
        ("a man's hat", ("a", "man", "'s", "hat"), [[1], [2], [3], [4]]),
        ("go left!", ("go", "left"), [[1], [2]]),
        ("?!", (), []),
    ],
    ids=["plain", "pieces-and-comma", "apostrophe", "exclamation", "no-word"],
)
def test_tokens_are_spelled_as_words(sentence, words, places):
    assert spell(tokenize([sentence], 17)[0]) == (words, places)


def test_every_stage_has_its_maps(maps):
    assert maps.words == ("the", "overexposed", "circle", "left")
    assert maps.logits.shape == (96, 96)
    assert maps.absent == ""
    assert [stage.stride for stage in maps.stages] == [4, 8, 16, 32]
    for stage in maps.stages:
        side = 96 // stage.stride
        assert stage.fused.shape == stage.aligned.shape == (side, side)
        assert stage.words.shape == (4, side, side)
        assert stage.mask.shape == (48, 48)
        assert 0 <= stage.mask.min() < stage.mask.max() <= 1


def test_m4_is_read_as_the_answer(maps):
    scores = torch.logit(torch.from_numpy(maps.stages[0].mask))[None, None]
    answer = resize(scores, (96, 96))[0, 0].numpy()
    assert answer == pytest.approx(maps.logits, abs=1e-4)


def test_a_mask_holds_its_stage_and_the_coarser_ones(random_model, picture, maps):
    """Without stage 2's features M_3 and M_4 are others; M_1 and M_2 come before them."""
    handle = random_model.decoder.lateral[1].register_forward_hook(lambda module, inputs, output: 0 * output)
    try:
        without = trace(random_model, picture, SENTENCE)
    finally:
        handle.remove()
    same = [bool(np.all(a.mask == b.mask)) for a, b in zip(maps.stages, without.stages, strict=True)]
    assert same == [False, False, True, True]


def test_word_maps_and_strengths_are_those_of_the_equations(random_model, picture, maps):
    """Equation 16 by its factors, for the word of three pieces too; F_LV from MLAM itself."""
    seen = []
    handle = random_model.plus[1].mlam.register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    try:
        trace(random_model, picture, SENTENCE)
    finally:
        handle.remove()
    f_vl, f_lv = (tensor[0] for tensor in seen[0])
    plus = random_model.plus[1]
    with torch.inference_mode():
        left, right = plus.w_v(f_vl[None])[0], plus.w_l(f_lv[None])[0]
        affinity = torch.einsum("dl,dhw->lhw", left, right)
    stage = maps.stages[1]
    assert stage.words[1] == pytest.approx(affinity[2:5].mean(0).numpy(), abs=1e-5)
    assert stage.words[3] == pytest.approx(affinity[7].numpy(), abs=1e-5)
    assert stage.aligned == pytest.approx(f_lv.square().sum(0).sqrt().numpy(), rel=1e-5)


def test_tracing_leaves_the_model_as_it_was(random_model, picture):
    trace(random_model, picture, SENTENCE)
    with pytest.raises(UserError, match="empty"):
        trace(random_model, picture, " ")
    hooks = [module for module in random_model.modules() if module._forward_pre_hooks]
    assert hooks == []


@pytest.mark.parametrize(
    ("row", "absent"),
    [
        ("a", "F_LV and the words (it has no MLAM) and M_1 to M_4 (it has no WFDM)"),
        ("c", "F_LV and the words (it has no MLAM) and M_1 to M_4 (it has no WFDM)"),
        ("d", "M_1 to M_4 (it has no WFDM)"),
    ],
)
def test_variants_show_what_they_have(picture, row, absent):
    torch.manual_seed(0)
    model = tfanet.build_model("tiny", **VARIANTS[row]).eval()
    found = trace(model, picture, "the circle")
    assert found.absent == absent
    assert [stage.fused.shape[0] for stage in found.stages] == [24, 12, 6, 3]
    full = trace(tfanet.build_model("tiny").eval(), picture, "the circle")
    assert map_sheet(picture, "the circle", found).width < map_sheet(picture, "the circle", full).width


def test_the_colours_of_heat_are_even_in_lightness():
    red, green, blue = (heat(np.linspace(0, 1, 29)[None])[0] / 255).T
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    steps = np.diff(116 * np.cbrt(luminance) - 16)
    assert steps.min() > 0.6 * steps.mean()
    assert steps.max() < 1.4 * steps.mean()


def drawn_maps(words: int = 2) -> Maps:
    """Maps without a model; every map has its own values."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.random(shape, dtype=np.float32)

    stages = tuple(
        StageMaps(
            96 // side, noise(side, side), noise(side, side), noise(words, side, side) - 0.5, noise(48, 48)
        )
        for side in (24, 12, 6, 3)
    )
    return Maps(stages, tuple(f"word{n}" for n in range(words)), noise(96, 96) - 0.5)


def difference(one: Image.Image, other: Image.Image) -> tuple[int, int, int, int]:
    """The box in which two pictures of one size differ."""
    box = ImageChops.difference(one, other).getbbox()
    assert box is not None
    return box


@pytest.mark.parametrize("size", [(200, 200), (60, 300), (640, 120), (5, 400), (400, 3), (1, 1)], ids=str)
@pytest.mark.parametrize(
    ("words", "sentence"),
    [(0, "?!"), (2, "red circle"), (20, "unbelievably long sentence " * 8), (1, "W" * 200)],
    ids=["no-word", "two", "twenty", "one-long-word"],
)
def test_nothing_reaches_into_the_margin(size, words, sentence):
    sheet = map_sheet(Image.new("RGB", size, (90, 120, 30)), sentence, drawn_maps(words))
    margin = 14
    inner = (margin, margin, sheet.width - margin, sheet.height - margin)
    ground = Image.new("RGB", sheet.size, PAPER)
    left, top, right, bottom = difference(sheet, ground)
    assert (left >= inner[0], top >= inner[1], right <= inner[2], bottom <= inner[3]) == (True,) * 4


def test_a_map_is_drawn_once_in_its_own_place(picture):
    maps = drawn_maps()
    hot = np.zeros((6, 6), dtype=np.float32)
    hot[:, :3] = 1
    changed = dataclasses.replace(maps.stages[2], fused=hot)
    other = dataclasses.replace(maps, stages=(*maps.stages[:2], changed, maps.stages[3]))
    before, after = (map_sheet(picture, "a circle", each) for each in (maps, other))
    left, top, right, bottom = difference(before, after)
    width, height = right - left, bottom - top
    assert 150 < width < 250
    assert width / height == pytest.approx(picture.width / picture.height, rel=0.05)
    cell = np.asarray(after.crop((left, top, right, bottom)), dtype=float).mean(axis=2)
    assert cell[:, : width // 4].mean() > 2 * cell[:, -width // 4 :].mean()


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_maps_are_drawn(value):
    flat = [
        StageMaps(4, *(np.full(shape, value, np.float32) for shape in ((3, 3), (3, 3), (1, 3, 3), (6, 6))))
        for _ in range(4)
    ]
    sheet = map_sheet(Image.new("RGB", (90, 90)), "red", Maps(tuple(flat), ("red",), np.zeros((96, 96))))
    assert sheet.mode == "RGB"


def test_subscripts_are_smaller_and_letters_alone_stay():
    assert symbol_width("F_LV", 40) < symbol_width("FLV", 40)
    assert symbol_width("snake_case", 40) > symbol_width("snakecase", 40)
    canvas = Canvas(200, 60)
    canvas.symbol((0, 0), "M_4", 40)
    assert canvas.image.getbbox() is not None


@pytest.mark.parametrize("room", [40, 90, 400])
def test_text_is_made_to_fit(room):
    text, size = fit("antidisestablishmentarianism", 20, 13, room)
    assert symbol_width(text, size) <= room
    assert 13 <= size <= 20
    lines = wrap(f"a {'W' * 30} of some words", 20, room)
    assert all(symbol_width(line, 20) <= room for line in lines)
    assert "".join(lines).replace(" ", "") == f"a{'W' * 30}ofsomewords"
