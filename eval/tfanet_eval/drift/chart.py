"""The chart of `tfanet-eval drift`: which error enters in each block, and how it accumulates."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfanet_eval.report.svg import STYLE, to_svg

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from tfanet_eval.drift.measure import BlockDrift

_OWN, _HALF, _ONNX, _OVERFLOW = "#9db7d9", "#1f5fa8", "#2e8b57", "#c62828"
_RANGE = (1e-5, 1.0)
"""The ends of the axis; an overflow reaches the right end."""


def draw(drifts: Sequence[BlockDrift], title: str) -> str:
    """`drift_figure` as SVG."""
    return to_svg(drift_figure(drifts, title), title)


def drift_figure(drifts: Sequence[BlockDrift], title: str) -> Figure:
    """One row per block: a bar for the error that enters, markers and a number for the accumulated error."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = np.arange(len(drifts))
    own = np.array([drift.own.value for drift in drifts])
    half = np.array([drift.half.value for drift in drifts])
    onnx = np.array([drift.onnx.value if drift.onnx else math.nan for drift in drifts])
    title_lines = textwrap.wrap(title, 90)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 1.2 + 0.22 * len(title_lines) + 0.22 * len(drifts)))
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.1)
        figure.suptitle("\n".join(title_lines), x=0.015, ha="left", size=12, weight="bold", parse_math=False)
        axes = figure.subplots()
        axes.barh(rows, own.clip(*_RANGE), 0.7, color=np.where(np.isfinite(own), _OWN, _OVERFLOW))
        handles = [Patch(color=_OWN, label="enters in this block")]
        for errors, colour, runtime in ((half, _HALF, "FP16 arithmetic"), (onnx, _ONNX, "ONNX Runtime")):
            finite = np.isfinite(errors)
            values, places, label = errors[finite].clip(*_RANGE), rows[finite], f"accumulated, {runtime}"
            if errors is half or not np.isnan(onnx).all():
                handles += axes.plot(
                    values, places, "o", color=colour, mec="white", markersize=7, label=label, clip_on=False
                )
        handles.append(Patch(color=_OVERFLOW, label="overflow: NaN or infinity"))
        figure.legend(handles=handles, loc="outside lower left", ncols=4)
        axes.set(xscale="log", xlim=_RANGE, ylim=(len(drifts) - 0.4, -0.6))
        axes.set(xlabel="root mean square error relative to the FP32 output", axisbelow=True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.minorticks_off()
        axes.grid(axis="x", alpha=0.6)
        axes.grid(axis="y", visible=False)
        axes.set_yticks(rows, [drift.name for drift in drifts])
        axes.tick_params(axis="y", left=False)
        right = axes.secondary_yaxis("right")
        right.spines["right"].set_visible(False)
        right.set_yticks(
            rows, [f"{100 * error:.3g} %" if math.isfinite(error) else "overflows" for error in half]
        )
        right.tick_params(right=False)
        axes.text(1.013, 1, "accumulated", transform=axes.transAxes, va="bottom", color="#6b6e76")
        _mark_overflow(axes.yaxis, own)
        _mark_overflow(right.yaxis, half)
    return figure


def _mark_overflow(axis: Axis, errors: np.ndarray) -> None:
    for label, error in zip(axis.get_ticklabels(), errors, strict=True):
        if not math.isfinite(error):
            label.set(color=_OVERFLOW, fontweight="bold")
