"""The drift of every block, drawn: which error enters where, and how it grows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tfanet_eval.drift.measure import BlockDrift, RelativeError
from tfanet_eval.svg import FAINT, INK, Drawing

_OWN, _HALF, _ONNX, _BAD = "#9db7d9", "#1f5fa8", "#2e8b57", "#c62828"
_LEFT, _RIGHT, _TOP, _ROW, _WIDTH = 190, 110, 96, 21, 900
_FLOOR, _CEILING = -5, 0
"""Exponents of ten at the ends of the axis."""


def draw(drifts: Sequence[BlockDrift], title: str) -> str:
    """An SVG with a row for each block: a bar for its own error, dots for what has gathered."""
    height = _TOP + _ROW * len(drifts) + 30
    sheet = Drawing(_WIDTH, height, title)
    sheet.text(24, 32, title, 16, bold=True)
    _legend(sheet, with_onnx=any(d.onnx for d in drifts))
    bottom = _TOP + _ROW * len(drifts)
    for exponent in range(_FLOOR, _CEILING + 1):
        x = _x(10.0**exponent)
        sheet.line([(x, _TOP - 6), (x, bottom)], "#e4e6ea")
        sheet.text(x, bottom + 18, f"{100 * 10.0**exponent:g} %", 11, FAINT, anchor="middle")
    for i, drift in enumerate(drifts):
        _row(sheet, drift, _TOP + _ROW * i)
    return sheet.render()


def _legend(sheet: Drawing, *, with_onnx: bool) -> None:
    x = 24.0
    entries = [(_OWN, "enters here"), (_HALF, "gathered, FP16 arithmetic"), (_ONNX, "gathered, ONNX Runtime")]
    for colour, text in [*entries[: 3 if with_onnx else 2], (_BAD, "overflow: NaN or infinity")]:
        sheet.box(x, 50, 14, 14, colour, colour)
        sheet.text(x + 21, 61.5, text, 12.5)
        x += 40 + 6.9 * len(text)
    sheet.text(24, 84, "Root mean square error relative to the FP32 output, logarithmic.", 11.5, FAINT)
    sheet.text(_WIDTH - _RIGHT + 10, 84, "gathered", 11.5, FAINT)


def _row(sheet: Drawing, drift: BlockDrift, top: float) -> None:
    overflows = not math.isfinite(drift.own.value)
    colour = _BAD if overflows else INK
    sheet.text(_LEFT - 12, top + 14.5, drift.name, 12, colour, anchor="end", bold=overflows)
    fill = _BAD if overflows else _OWN
    sheet.box(_LEFT, top + 3, max(_x(drift.own.value) - _LEFT, 1), _ROW - 6, fill, fill)
    if not math.isfinite(drift.half.value):
        sheet.text(_WIDTH - _RIGHT + 10, top + 14.5, "overflows", 11.5, _BAD, bold=overflows)
    else:
        sheet.text(_WIDTH - _RIGHT + 10, top + 14.5, f"{100 * drift.half.value:.3g} %", 11.5, FAINT)
    _dot(sheet, drift.half, _HALF, top)
    if drift.onnx is not None:
        _dot(sheet, drift.onnx, _ONNX, top)


def _dot(sheet: Drawing, error: RelativeError, colour: str, top: float) -> None:
    x = _x(error.value)
    if math.isfinite(error.value):
        sheet.box(x - 4, top + 6, 8, 9, colour, "#ffffff")


def _x(error: float) -> float:
    place = math.log10(error) if 0 < error < math.inf else (_CEILING if error else _FLOOR)
    share = (min(max(place, _FLOOR), _CEILING) - _FLOOR) / (_CEILING - _FLOOR)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
