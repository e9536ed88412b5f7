"""The maps inside a model, and the figure of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageChops

import tfanet
from tfanet.config import VARIANTS
from tfanet.data.preprocess import tokenize
from tfanet.data.shapes import render_pair
from tfanet.errors import UserError
from tfanet.layers import resize
from tfanet.visualize import PAPER
from tfanet_eval.maps.sheet import HEAT, SIGNED, map_figure, map_sheet
from tfanet_eval.maps.trace import Maps, StageMaps, split_words, trace

pytestmark = pytest.mark.integration

EXPRESSION = "the overexposed circle, left"


@pytest.fixture(scope="module")
def image():
    return render_pair(seed=0, index=0)[0]


@pytest.fixture(scope="module")
def maps(random_model, image):
    return trace(random_model, image, EXPRESSION)


@pytest.mark.parametrize(
    ("expression", "words", "positions"),
    [
        ("red circle", ("red", "circle"), [[1], [2]]),
        (EXPRESSION, ("the", "overexposed", "circle", "left"), [[1], [2, 3, 4], [5], [7]]),
        ("a man's hat", ("a", "man", "'s", "hat"), [[1], [2], [3], [4]]),
        ("go left!", ("go", "left"), [[1], [2]]),
        ("?!", (), []),
    ],
    ids=["plain", "subwords-and-comma", "apostrophe", "exclamation", "no-word"],
)
def test_tokens_are_grouped_into_words(expression, words, positions):
    assert split_words(tokenize([expression], 17)[0]) == (words, positions)


def test_every_stage_has_maps_of_its_size(maps):
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


def test_m4_gives_the_prediction(maps):
    scores = torch.logit(torch.from_numpy(maps.stages[0].mask))[None, None]
    logits = resize(scores, (96, 96))[0, 0].numpy()
    assert logits == pytest.approx(maps.logits, abs=1e-4)


def test_a_mask_depends_on_its_stage_and_coarser_stages(random_model, image, maps):
    """Zeroing stage 2's features changes M_3 and M_4, but not M_1 and M_2."""
    handle = random_model.decoder.lateral[1].register_forward_hook(lambda module, inputs, output: 0 * output)
    try:
        without = trace(random_model, image, EXPRESSION)
    finally:
        handle.remove()
    same = [bool(np.all(a.mask == b.mask)) for a, b in zip(maps.stages, without.stages, strict=True)]
    assert same == [False, False, True, True]


def test_word_maps_and_norms_match_the_equations(random_model, image, maps):
    """Equation 16 from its factors, also for a word of three tokens; F_LV from MLAM's output."""
    outputs = []
    handle = random_model.plus[1].mlam.register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    )
    try:
        trace(random_model, image, EXPRESSION)
    finally:
        handle.remove()
    f_vl, f_lv = (tensor[0] for tensor in outputs[0])
    plus = random_model.plus[1]
    with torch.inference_mode():
        left, right = plus.w_v(f_vl[None])[0], plus.w_l(f_lv[None])[0]
        affinity = torch.einsum("dl,dhw->lhw", left, right)
    stage = maps.stages[1]
    assert stage.words[1] == pytest.approx(affinity[2:5].mean(0).numpy(), abs=1e-5)
    assert stage.words[3] == pytest.approx(affinity[7].numpy(), abs=1e-5)
    assert stage.aligned == pytest.approx(f_lv.square().sum(0).sqrt().numpy(), rel=1e-5)


def test_tracing_removes_its_hooks(random_model, image):
    trace(random_model, image, EXPRESSION)
    with pytest.raises(UserError, match="empty"):
        trace(random_model, image, " ")
    hooks = [module for module in random_model.modules() if module._forward_pre_hooks]
    assert hooks == []


@pytest.mark.parametrize(
    ("row", "absent", "titles"),
    [
        ("a", "F_LV and the words (it has no MLAM) and M_1 to M_4 (it has no WFDM)", ["$|F_F|$"]),
        ("c", "F_LV and the words (it has no MLAM) and M_1 to M_4 (it has no WFDM)", ["$|F_F|$"]),
        ("d", "M_1 to M_4 (it has no WFDM)", ["$|F_{LV}|$", "$|F_F|$", "the", "circle"]),
        ("e", "", ["$|F_{LV}|$", "$|F_F|$", "read from $M_j$", "the", "circle"]),
    ],
)
def test_variants_show_the_maps_they_have(image, row, absent, titles):
    torch.manual_seed(0)
    model = tfanet.build_model("tiny", **VARIANTS[row]).eval()
    maps = trace(model, image, "the circle")
    assert maps.absent == absent
    assert [stage.fused.shape[0] for stage in maps.stages] == [24, 12, 6, 3]
    drawn = map_axes(map_figure(image, "the circle", maps))
    assert sorted(drawn) == sorted(f"{stage} {title}" for stage in (1, 2, 3, 4) for title in titles)


def test_heat_colours_have_even_steps_of_lightness():
    red, green, blue = HEAT(np.linspace(0, 1, 29))[:, :3].T
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    steps = np.diff(116 * np.cbrt(luminance) - 16)
    assert steps.min() > 0.6 * steps.mean()
    assert steps.max() < 1.4 * steps.mean()


def test_signed_colours_are_transparent_at_zero():
    red, _, blue, alpha = SIGNED(np.linspace(0, 1, 11)).T
    assert alpha[5] == 0
    assert alpha[:5] == pytest.approx(alpha[:5:-1], abs=0.01)
    assert (np.diff(alpha[5:]) > 0).all()
    assert (blue[:5] > 2 * red[:5]).all()
    assert (red[6:] > 2 * blue[6:]).all()


def random_maps(words: tuple[str, ...] = ("word0", "word1")) -> Maps:
    """Maps without a model; every map has its own values."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.random(shape, dtype=np.float32)

    stages = tuple(
        StageMaps(
            96 // side,
            noise(side, side),
            noise(side, side),
            noise(len(words), side, side) - 0.5,
            noise(48, 48),
        )
        for side in (24, 12, 6, 3)
    )
    return Maps(stages, words, noise(96, 96) - 0.5)


def map_axes(figure):
    """The axes of the maps by label, such as "2 red": the grey image, and the map over it."""
    return {axes.get_label(): axes for axes in figure.axes if axes.get_label()[0] in "1234"}


def test_every_map_is_drawn_with_its_values_and_scale(image):
    maps = random_maps()
    drawn = map_axes(map_figure(image, "a circle", maps))
    assert len(drawn) == 4 * 5
    for number, stage in enumerate(maps.stages, 1):
        own = {"$|F_{LV}|$": stage.aligned, "$|F_F|$": stage.fused, "read from $M_j$": stage.mask}
        for title, values in own.items():
            grey, heat = drawn[f"{number} {title}"].images
            assert np.array_equal(heat.get_array(), values)
            assert heat.get_cmap() == HEAT
            assert heat.norm.vmax == pytest.approx(np.percentile(values, 99.5))
            assert heat.norm.vmin == pytest.approx(0 if "M_j" in title else np.percentile(values, 1))
            assert grey.get_array().mean() == pytest.approx(128, abs=3)
        words = [drawn[f"{number} word{n}"].images[1] for n in range(2)]
        assert all(np.array_equal(word.get_array(), stage.words[n]) for n, word in enumerate(words))
        limit = np.percentile(np.abs(stage.words), 99)
        assert [(word.norm.vmin, word.norm.vmax) for word in words] == [(-limit, limit)] * 2
        assert all(word.get_cmap() == SIGNED for word in words)
        tags = [text.get_text() for text in drawn[f"{number} read from $M_j$"].texts]
        assert tags == [f"$M_{5 - number}$"]


def difference(one: Image.Image, other: Image.Image) -> tuple[int, int, int, int]:
    """The box in which two images of one size differ."""
    box = ImageChops.difference(one, other).getbbox()
    assert box is not None
    return box


LONG_WORDS = ("antidisestablishmentarianism", "w" * 40, "$5_x$", "a_b", *(f"word{n}" for n in range(16)))


@pytest.mark.parametrize("size", [(200, 200), (60, 300), (640, 120), (5, 400), (400, 3), (1, 1)], ids=str)
@pytest.mark.parametrize(
    ("words", "expression"),
    [
        ((), "?!"),
        (("red", "circle"), "red circle"),
        (LONG_WORDS, "unbelievably long $5_x$ expression " * 8),
        (("w" * 200,), "W" * 200),
    ],
    ids=["no-word", "two", "twenty", "one-long-word"],
)
def test_nothing_overlaps_or_leaves_the_figure(size, words, expression):
    figure = map_figure(Image.new("RGB", size, (90, 120, 30)), expression, random_maps(words))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    sheet = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    margin = 14
    inner = (margin, margin, sheet.width - margin, sheet.height - margin)
    left, top, right, bottom = difference(sheet, Image.new("RGB", sheet.size, PAPER))
    assert (left >= inner[0], top >= inner[1], right <= inner[2], bottom <= inner[3]) == (True,) * 4

    boxes = [text.get_window_extent() for text in figure.texts]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    for number, box in enumerate(boxes):
        others = boxes[:number]
        gaps = [max(box.x0 - o.x1, o.x0 - box.x1, box.y0 - o.y1, o.y0 - box.y1) for o in others]
        assert min(gaps, default=0) > -1
    assert min(text.get_fontsize() for text in figure.texts if text.get_text() not in ("", "…")) >= 7


def test_words_are_shortened_and_never_read_as_math(image):
    figure = map_figure(image, "a $5_x$ b", random_maps(LONG_WORDS[:3]))
    texts = {text.get_text(): text for text in figure.texts}
    assert "antidisestablishmen…" in texts
    assert not texts["$5_x$"].get_parse_math()
    assert not texts["“a $5_x$ b”"].get_parse_math()
    assert texts["$|F_{LV}|$"].get_parse_math()


def test_a_changed_map_changes_its_own_place_only(image):
    maps = random_maps()
    hot = np.zeros((6, 6), dtype=np.float32)
    hot[:, :3] = 1
    changed = dataclasses.replace(maps.stages[2], fused=hot)
    other = dataclasses.replace(maps, stages=(*maps.stages[:2], changed, maps.stages[3]))
    before, after = (map_sheet(image, "a circle", each) for each in (maps, other))
    left, top, right, bottom = difference(before, after)
    width, height = right - left, bottom - top
    assert 150 < width < 250
    assert width / height == pytest.approx(image.width / image.height, rel=0.05)
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


def test_a_character_without_a_glyph_is_drawn_without_a_warning(recwarn):
    map_sheet(Image.new("RGB", (90, 90)), "the 圆", random_maps(("圆",)))
    assert not recwarn.list
