"""The figure of the data flow: the shapes it is drawn of, and that the one in docs/ is still true."""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tfanet.config import PRESETS
from tfanet.console import run
from tfanet.visualize import lettering
from tfanet_eval.dataflow import app, draw
from tfanet_eval.flow import measure
from tfanet_eval.svg import Drawing

DOCS = Path(__file__).resolve().parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


measured = functools.cache(measure)


@pytest.fixture(params=["tiny", "base"])
def flow(request):
    return measured(request.param)


def test_the_figure_in_the_docs_is_what_the_model_is_now():
    again = "python -m tfanet_eval.dataflow --preset base --out docs/dataflow.svg"
    assert (DOCS / "dataflow.svg").read_text(encoding="utf-8") == draw(measured("base")), (
        f"draw it again: {again}"
    )


def test_the_shapes_are_those_of_the_config(flow):
    config = PRESETS[flow.preset]
    d, length, size = config.mlam_dim, config.token_length, config.image_size
    assert flow.image.shape == f"[B, {size}, {size}, 3]"
    assert flow.tokens.shape == f"[B, {length}]"
    assert [stage.stride for stage in flow.stages] == [4, 8, 16, 32]
    assert [stage.blocks for stage in flow.stages] == list(config.vmamba_depths)
    for i, (stage, channels) in enumerate(zip(flow.stages, config.vmamba_dims, strict=True), 1):
        side = f"{size // stage.stride}, {size // stage.stride}"
        rows = [*stage.encoder, *stage.plus, *stage.fusion, *stage.masks]
        assert {row.symbol: row.shape for row in rows} == {
            f"F_V{i}": f"[B, {channels}, {side}]",
            "F_VL": f"[B, {d}, {length}]",
            "F_LV": f"[B, {d}, {side}]",
            "F_f": f"[B, {length}, {side}]",
            "F_Block": f"[B, {3 * channels}, {side}]",
            "F_Channel": f"[B, {3 * channels}, {side}]",
            "F_Space": f"[B, {channels}, {side}]",
            f"F_F{i}": f"[B, {channels}, {side}]",
            "δ(F_VL)": f"[B, {config.decoder_dim}, {length}]",
            f"F_M{5 - i}": f"[B, {config.decoder_dim}, {side}]",
            f"M_{5 - i}": f"[B, {config.decoder_dim}, {side}]",
        }
    scores, answer = flow.answer
    assert scores.shape == f"[B, 2, {size // 2}, {size // 2}]"
    assert answer.shape == f"[B, {size}, {size}]"


def test_the_parameters_are_counted(flow, random_model):
    if flow.preset == "tiny":
        assert flow.parameters == sum(parameter.numel() for parameter in random_model.parameters())
    else:
        assert flow.parameters == pytest.approx(268.46e6, rel=0.01)


def test_nothing_leaves_the_sheet_and_no_text_meets_another(flow):
    root = ET.fromstring(draw(flow))
    width, height = int(root.get("width", 0)), int(root.get("height", 0))
    extents = []
    for element in root.iter(f"{SVG}text"):
        written = "".join(element.itertext())
        x, y, size = (float(element.get(name, 0)) for name in ("x", "y", "font-size"))
        # Subscripts and equation numbers are smaller than this takes them for.
        length = lettering(100).getlength(re.sub(r"[^ -~]", "x", written)) * size / 100
        left = {"start": x, "middle": x - length / 2, "end": x - length}[element.get("text-anchor", "start")]
        extents.append((y, left, left + length, written))
        assert 10 < left < left + length < width - 10, written
        assert 10 < y < height - 10, written
    for y, left, right, written in extents:
        for other_y, other_left, _, other in extents:
            if y == other_y and left < other_left:
                assert right < other_left, f"{written} runs into {other}"
    for element in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(element.get(name, 0)) for name in ("x", "y", "width", "height"))
        assert 0 < x < x + w < width
        assert 0 < y < y + h < height


@pytest.mark.parametrize(
    ("text", "aside", "plain", "shifts"),
    [
        ("F_LV", "", "FLV", [3.0]),
        ("F_LV", "(15)", "FLV(15)", [3.0, -3.0]),
        ("δ(F_VL) & M_4", "", "δ(FVL) & M4", [3.0, -3.0, 3.0]),
        ("snake_case", "", "snake_case", []),
    ],
)
def test_subscripts_go_down_and_what_follows_comes_up(text, aside, plain, shifts):
    drawing = Drawing(100, 50, "a <title>")
    drawing.text(5, 20, text, 12.5, aside=aside)
    root = ET.fromstring(drawing.render())
    (element,) = root.iter(f"{SVG}text")
    assert "".join(element.itertext()) == plain
    assert [float(span.get("dy", 0)) for span in element if span.get("dy")] == shifts
    assert root.findtext(f"{SVG}title") == "a <title>"


def test_every_arrow_has_a_tip_of_its_colour():
    drawing = Drawing(100, 50, "tips")
    drawing.arrow([(1, 1), (9, 9)], "#111111")
    drawing.arrow([(9, 1), (1, 9)], "#222222")
    drawing.arrow([(9, 1), (1, 9)], "#111111")
    root = ET.fromstring(drawing.render())
    tips = {f"url(#{tip.get('id')})": tip[0].get("fill") for tip in root.iter(f"{SVG}marker")}
    used = [(path.get("marker-end"), path.get("stroke")) for path in root.iter(f"{SVG}path")]
    assert set(tips.values()) == {"#111111", "#222222"}
    assert [tips[tip] == colour for tip, colour in used if tip] == [True] * 3


def test_the_command_writes_the_figure(command):
    done = command(lambda: run(app), "--preset", "tiny", "--out", "new/flow.svg")
    assert done.code == 0, done.err
    assert "wrote new/flow.svg" in done.out
    assert Path("new/flow.svg").read_text(encoding="utf-8") == draw(measured("tiny"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["--out", "flow.png"], "must end in .svg", id="no-svg"),
        pytest.param(["--preset", "huge"], "unknown preset 'huge'", id="no-preset"),
        pytest.param(["--out", "file/flow.svg"], "cannot write", id="unwritable"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(command, arguments, named):
    Path("file").touch()
    done = command(lambda: run(app), *arguments)
    assert done.code == 2
    assert named in done.err
    assert done.err.strip().count("\n") == 0
    assert [path.name for path in Path().iterdir()] == ["file"]
