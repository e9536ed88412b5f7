"""Charts of a report as SVG: text stays text, and takes its colour from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0a84d6", "#d9730d", "#1f9d55", "#a347ba", "#c8323c", "#7a7f87")
"""One an engine, of about equal weight on white and on near black."""
BINS = 20
_DASHES = ("-", "--", "-.", ":")
_INK = "#123456"
"""Stands for the page's own text colour until the SVG is written."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "tfanet", "font.family": "sans-serif", "font.size": 9,
    "text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK,
    "ytick.color": _INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.18, "grid.color": _INK, "legend.frameon": False, "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
}  # fmt: skip

Named = Sequence[tuple[str, np.ndarray]]
"""Engines by name, each with one float array `[n]`, n > 0."""


def iou_histogram(engines: Named) -> str:
    """Share of expressions, in percent, over `BINS` equal steps of IoU (0..1)."""
    edges = np.linspace(0, 1, BINS + 1)
    figure, axes = _sheet("IoU", "expressions, %")
    for place, (name, ious) in enumerate(engines):
        counts, _ = np.histogram(ious, edges)
        colour, dash = _line(place)
        axes.stairs(100 * counts / len(ious), edges, label=name, color=colour, linestyle=dash, linewidth=1.8)
        if place == 0:
            axes.stairs(100 * counts / len(ious), edges, fill=True, color=colour, alpha=0.16)
    axes.set_xlim(0, 1)
    return _svg(figure, axes, "Histogram of IoU")


def precision_curve(engines: Named) -> str:
    """P@X, the share of expressions with IoU >= X in percent, for X from 0 to 1."""
    figure, axes = _sheet("X", "P@X, %")
    levels = np.linspace(0, 1, 201)
    for place, (name, ious) in enumerate(engines):
        reached = 100 * (len(ious) - np.searchsorted(np.sort(ious), levels, side="left")) / len(ious)
        colour, dash = _line(place)
        axes.plot(levels, reached, label=name, color=colour, linestyle=dash)
    axes.set(xlim=(0, 1), ylim=(0, 102))
    return _svg(figure, axes, "P@X for every X")


def latency_distribution(engines: Named) -> str:
    """Share of calls, in percent, that took at most so many milliseconds an image; medians are marked."""
    figure, axes = _sheet("ms per image (log)", "calls, %")
    for place, (name, milliseconds) in enumerate(engines):
        values = np.sort(milliseconds)
        colour, dash = _line(place)
        shares = 100 * np.arange(1, len(values) + 1) / len(values)
        axes.step(values, shares, where="post", label=name, color=colour, linestyle=dash)
        axes.plot(np.median(values), 50, "o", color=colour, markersize=5)
    axes.set_xscale("log")
    axes.set_ylim(0, 102)
    _plain_ticks(axes)
    return _svg(figure, axes, "Distribution of latency")


def _plain_ticks(axes: Axes) -> None:
    """Numbers, not powers of ten: latencies seldom span more than a few of them."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _line(place: int) -> tuple[str, str]:
    return COLOURS[place % len(COLOURS)], _DASHES[place % len(_DASHES)]


def _sheet(across: str, up: str) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=across, ylabel=up)
    return figure, axes


def _svg(figure: Figure, axes: Axes, title: str) -> str:
    """`<svg>` without XML head or fixed size, whose text and lines have the colour `currentColor`."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context(_STYLE):
        axes.legend(loc="best")
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{title}"', text, count=1)
    # Ids are those of one drawing; a page has several.
    return re.sub(r'((?:id=|href=|url\()"?#?)([A-Za-z]\w+)', rf"\1{title.replace(' ', '-')}-\2", text)
