"""Matplotlib figures as SVG elements for a web page."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "tfanet", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.18, "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.8,
}  # fmt: skip
"""Settings for `matplotlib.rc_context`; text stays text."""


def to_svg(figure: Figure, title: str, style: dict[Any, Any] = STYLE, *, transparent: bool = False) -> str:
    """`<svg>` with `title` as label, without XML head and dates; the same figure gives the same text.

    Ids begin with the title, so that several drawings can share a page.
    """
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context(style):
        figure.savefig(
            stream, format="svg", transparent=transparent, metadata={"Date": None, "Creator": None}
        )
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    prefix = "svg-" + re.sub(r"\W+", "-", title)  # an XML id starts with a letter
    return re.sub(r'((?:id=|href=|url\()"?#?)([A-Za-z]\w+)', rf"\g<1>{prefix}-\g<2>", text)
