"""Charts of a report as SVG, with text and lines in the text colour of the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfanet_eval.report.entries import COLOURS
from tfanet_eval.report.svg import STYLE, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 20
_DASHES = ("-", "--", "-.", ":")
_INK = "#123456"
"""A placeholder, replaced by `currentColor` in the SVG."""
_STYLE: dict[Any, Any] = STYLE | {
    f"{name}color": _INK for name in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.", "grid.")
}

Named = Sequence[tuple[str, np.ndarray]]
"""Name and values of every engine, float `[n]`, n > 0."""


def iou_histogram(engines: Named) -> str:
    """Histogram of IoU (0..1) in `BINS` bins: the share of expressions in percent."""
    edges = np.linspace(0, 1, BINS + 1)
    figure, axes = _subplots("IoU", "expressions, %")
    for number, (name, ious) in enumerate(engines):
        counts, _ = np.histogram(ious, edges)
        style = _line_style(number)
        axes.stairs(100 * counts / len(ious), edges, label=name, **style, linewidth=1.8)
        if number == 0:
            axes.stairs(100 * counts / len(ious), edges, fill=True, color=style["color"], alpha=0.16)
    axes.set_xlim(0, 1)
    return _svg(figure, axes, "Histogram of IoU")


def precision_curve(engines: Named) -> str:
    """P@X, the share of expressions with IoU >= X in percent, for X from 0 to 1."""
    figure, axes = _subplots("X", "P@X, %")
    thresholds = np.linspace(0, 1, 201)
    for number, (name, ious) in enumerate(engines):
        shares = 100 * (len(ious) - np.searchsorted(np.sort(ious), thresholds, side="left")) / len(ious)
        axes.plot(thresholds, shares, label=name, **_line_style(number))
    axes.set(xlim=(0, 1), ylim=(0, 102))
    return _svg(figure, axes, "P@X for every X")


def latency_distribution(engines: Named) -> str:
    """Cumulative distribution of milliseconds per image, in percent of the calls; dots mark medians."""
    figure, axes = _subplots("ms per image (log)", "calls, %")
    for number, (name, milliseconds) in enumerate(engines):
        values, style = np.sort(milliseconds), _line_style(number)
        shares = 100 * np.arange(1, len(values) + 1) / len(values)
        axes.step(values, shares, where="post", label=name, **style)
        axes.plot(np.median(values), 50, "o", color=style["color"], markersize=5)
    axes.set_xscale("log")
    axes.set_ylim(0, 102)
    _plain_ticks(axes)
    return _svg(figure, axes, "Distribution of latency")


def _plain_ticks(axes: Axes) -> None:
    """Ticks as plain numbers instead of powers of ten: latencies span few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _line_style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": _DASHES[number % len(_DASHES)]}


def _subplots(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def _svg(figure: Figure, axes: Axes, title: str) -> str:
    """The figure as `<svg>` without a fixed size."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        axes.legend(loc="best")
    text = to_svg(figure, title, _STYLE, transparent=True).replace(_INK, "currentColor")
    head, end, rest = text.partition(">")
    return re.sub(r' (width|height)="[^"]*"', "", head) + end + rest
