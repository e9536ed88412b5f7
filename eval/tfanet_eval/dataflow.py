"""`python -m tfanet_eval.dataflow`: Figure 2 of the paper with the shapes that a preset's tensors have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfanet.console import new_app, run, say
from tfanet_eval.svg import FAINT, Drawing

if TYPE_CHECKING:
    from tfanet_eval.flow import Flow, Row

app = new_app("Draw a preset's data flow with the shapes of its tensors, as SVG.")

_WIDTH, _HEIGHT, _LEFT = 1192, 612, 24
_SIDE = 144
"""The width of the boxes at the left: inputs and answer."""
_FIRST, _PITCH, _BOX = 212, 248, 212
"""The left edge of stage 1, the step to the next stage, the width of a stage's boxes."""
_ENCODER, _BUS, _PLUS, _FUSION, _MASKS = 72, 182, 208, 358, 490
"""The tops of the four rows of boxes, and where the sentence's features run between the first two."""
_TITLE, _LINE, _FOOT = 28, 19, 10

_BLUE, _GREEN, _CYAN, _VIOLET, _ORANGE = "#3b6fd4", "#23916a", "#2488b3", "#8150c8", "#d9671a"
_FILLS = {
    _BLUE: ("#eff4fd", "#b7ccf2"),
    _GREEN: ("#eaf7f1", "#a9dbc5"),
    _CYAN: ("#ebf6fb", "#a3d2e6"),
    _VIOLET: ("#f5f0fd", "#d0b8ef"),
    _ORANGE: ("#fef2e9", "#f2c39c"),
}
"""Fill and edge of a box, by the colour of what leaves it."""
_LEGEND = {
    _BLUE: "image features",
    _GREEN: "words and sentence",
    _CYAN: "fusion block",
    _VIOLET: "fused features",
    _ORANGE: "masks",
}


@app.command()
def draw_preset(
    preset: Annotated[str, typer.Option(help="Whose data flow: tiny or base.")] = "base",
    out: Annotated[Path, typer.Option(help="SVG file to write.")] = Path("dataflow.svg"),
) -> None:
    """Run the preset on the meta device and draw what flows between its parts."""
    from tfanet.errors import UserError
    from tfanet.files import require_writable, write_text

    if out.suffix != ".svg":
        raise UserError(f"{out} is not the name of an SVG; it must end in .svg")
    require_writable(out)
    from tfanet_eval.flow import measure

    write_text(out, draw(measure(preset)))
    say(f"wrote {out}")


def draw(flow: Flow) -> str:
    """The figure as the text of an SVG file."""
    drawing = Drawing(_WIDTH, _HEIGHT, f"Data flow of TFANet, preset {flow.preset}")
    millions = f"{flow.parameters / 1e6:.2f} million parameters"
    drawing.text(_LEFT, 40, f"TFANet, preset {flow.preset}: {millions}", 17, bold=True)
    drawing.text(
        _WIDTH - _LEFT, 40, "B: batch, σ: downsampling, (n): equation of the paper", 12.5, FAINT, anchor="end"
    )
    _draw_sides(drawing, flow)
    for number, stage in enumerate(flow.stages, 1):
        left = _FIRST + (number - 1) * _PITCH
        depth = f"{stage.blocks} block{'s' if stage.blocks > 1 else ''}, stride {stage.stride}"
        cfsm = f"CFSM x {stage.cfsm_blocks}" if stage.cfsm_blocks > 1 else "CFSM"
        _draw_flow(drawing, left, last=number == len(flow.stages))
        _stage_box(drawing, (left, _ENCODER), f"VSS stage {number}", stage.encoder, _BLUE, note=depth)
        _stage_box(drawing, (left, _PLUS), "Knowledge Plus", stage.plus, _CYAN, tag="MLAM")
        _stage_box(drawing, (left, _FUSION), "Knowledge Fusion", stage.fusion, _VIOLET, tag=cfsm)
        _stage_box(drawing, (left, _MASKS), "Knowledge Intensification", stage.masks, _ORANGE, tag="WFDM")
    return drawing.render()


def _height(lines: int) -> int:
    return _TITLE + _LINE * lines + _FOOT


def _line(top: int, number: int) -> int:
    """The middle of line `number` of a box."""
    return top + _TITLE + _LINE * number + 11


def _draw_sides(drawing: Drawing, flow: Flow) -> None:
    """Image, patches, sentence and its features, the legend, scores and answer, from top to bottom."""
    right, centre = _LEFT + _SIDE, _LEFT + _SIDE / 2
    drawing.arrow([(centre, 104), (centre, 118)], _BLUE)
    drawing.arrow([(right, 140), (_FIRST - 2, 140)], _BLUE)
    _side_box(drawing, 60, "image", flow.image.symbol, flow.image, _BLUE)
    _side_box(drawing, 120, "patch embedding", "", flow.patches, _BLUE)

    drawing.arrow([(centre, 236), (centre, 250)], _GREEN)
    last = _FIRST + (len(flow.stages) - 1) * _PITCH + _BOX / 2 + 28
    drawing.line([(right, 270), (right + 20, 270), (right + 20, _BUS), (last, _BUS)], _GREEN)
    drawing.text(right + 26, _BUS - 7, "F_W, F_T", 12.5, _GREEN)
    _side_box(drawing, 192, "sentence", flow.tokens.symbol, flow.tokens, _GREEN)
    drawing.box(_LEFT, 252, _SIDE, _height(2), *_FILLS[_GREEN])
    drawing.text(_LEFT + 10, 252 + 21, "CLIP text encoder", 13, bold=True)
    _rows(drawing, (_LEFT, 252), _SIDE, flow.text)

    for number, (colour, name) in enumerate(_LEGEND.items()):
        y = _FUSION + 10 + 18 * number
        drawing.line([(_LEFT + 10, y), (_LEFT + 32, y)], colour)
        drawing.text(_LEFT + 40, y + 4, name, 12, FAINT)

    scores, answer = flow.answer
    level = _line(_MASKS, 2)
    drawing.arrow([(_FIRST, level), (right + 16, level), (right + 16, 506), (right + 2, 506)], _ORANGE)
    drawing.arrow([(centre, 528), (centre, 542)], _ORANGE)
    _side_box(drawing, 484, scores.symbol, "", scores, _ORANGE)
    _side_box(drawing, 544, answer.symbol, "", answer, _ORANGE)


def _draw_flow(drawing: Drawing, left: int, *, last: bool) -> None:
    """The arrows between the boxes of the stage whose left edge is `left`, and on to the next stage."""
    right, centre = left + _BOX, left + _BOX / 2
    drawing.arrow([(centre + 28, _BUS), (centre + 28, _PLUS - 2)], _GREEN)
    drawing.arrow([(centre - 28, _ENCODER + _height(2)), (centre - 28, _PLUS - 2)], _BLUE)
    drawing.arrow([(centre, _PLUS + _height(4)), (centre, _FUSION - 2)], _CYAN)
    drawing.arrow([(centre, _FUSION + _height(3)), (centre, _MASKS - 2)], _VIOLET)
    words = (_line(_PLUS, 0), _line(_MASKS, 0))
    aside = left - 11
    drawing.arrow([(left, words[0]), (aside, words[0]), (aside, words[1]), (left - 1, words[1])], _GREEN)
    if last:
        return
    middle, beside = _ENCODER + _height(2) / 2, right + 14
    drawing.arrow([(right, middle), (left + _PITCH - 2, middle)], _BLUE)
    back = _line(_FUSION, 2)
    drawing.arrow([(right, back), (beside, back), (beside, middle + 9)], _VIOLET)
    drawing.sum(beside, middle, _BLUE)
    drawing.text(right + 29, middle - 7, "σ", 12.5, anchor="middle")
    level = _line(_MASKS, 2)
    drawing.arrow([(left + _PITCH, level), (right + 2, level)], _ORANGE)
    drawing.text(right + 20, level + 15, "Up", 11.5, FAINT, anchor="middle")


def _stage_box(
    drawing: Drawing,
    place: tuple[int, int],
    title: str,
    rows: Sequence[Row],
    colour: str,
    *,
    note: str = "",
    tag: str = "",
) -> None:
    """A box at (left, top): title, `note` as a line of its own, the tensors, `tag` on its upper edge."""
    left, top = place
    lines = len(rows) + bool(note)
    drawing.box(left, top, _BOX, _height(lines), *_FILLS[colour])
    drawing.text(left + 10, top + 21, title, 13, bold=True)
    if note:
        drawing.text(left + 10, _line(top, 0) + 4, note, 12, FAINT)
    if tag:
        drawing.tag(left + _BOX - 10, top, tag, colour)
    _rows(drawing, (left, top + _LINE * bool(note)), _BOX, rows)


def _rows(drawing: Drawing, place: tuple[int, int], width: int, rows: Sequence[Row]) -> None:
    left, top = place
    for number, row in enumerate(rows):
        base = _line(top, number) + 4
        drawing.text(left + 10, base, row.symbol, aside=f"({row.equation})" if row.equation else "")
        drawing.text(left + width - 10, base, row.shape, 12, anchor="end")


def _side_box(drawing: Drawing, top: int, title: str, note: str, row: Row, colour: str) -> None:
    drawing.box(_LEFT, top, _SIDE, 44, *_FILLS[colour])
    drawing.text(_LEFT + 10, top + 18, title, 13, bold=True)
    if note:
        drawing.text(_LEFT + _SIDE - 10, top + 18, note, 12, FAINT, anchor="end")
    drawing.text(_LEFT + _SIDE - 10, top + 36, row.shape, 12, anchor="end")


if __name__ == "__main__":
    run(app)
