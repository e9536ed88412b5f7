"""A drawing of boxes, arrows and lines of text with subscripts, written as SVG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

Point = tuple[float, float]

INK, FAINT = "#1e2026", "#6b6e76"
_PAPER, _BORDER = "#ffffff", "#d9dbe0"
_FONT = "-apple-system, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"


class Drawing:
    """A white sheet with round corners; x runs to the right and y down, in pixels of the sheet."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = (width, height)
        self._title = title
        self._colours: list[str] = []
        self._parts: list[str] = []

    def box(self, left: float, top: float, width: float, height: float, fill: str, edge: str) -> None:
        self._parts.append(
            f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="7" '
            f'fill="{fill}" stroke="{edge}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12.5,
        colour: str = INK,
        *,
        anchor: str = "start",
        bold: bool = False,
        aside: str = "",
    ) -> None:
        """One line with its base at y, `aside` smaller behind it.

        `F_LV` and `M_4` in it are italic letters with subscripts.
        """
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"{weight}>'
            f"{_spans(text, size, aside)}</text>"
        )

    def arrow(self, points: Sequence[Point], colour: str) -> None:
        """A line through `points` with a tip at the last; what it crosses gives way."""
        marker = f' marker-end="url(#{self._tip(colour)})"'
        self._line(points, _PAPER, 5.5)
        self._line(points, colour, 1.6, marker)

    def line(self, points: Sequence[Point], colour: str) -> None:
        self._line(points, colour, 1.6)

    def sum(self, x: float, y: float, colour: str) -> None:
        """A circle with a plus sign."""
        self._parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="8" fill="{_PAPER}" stroke="{colour}" stroke-width="1.6"/>'
        )
        self._line([(x - 4, y), (x + 4, y)], colour, 1.6)
        self._line([(x, y - 4), (x, y + 4)], colour, 1.6)

    def tag(self, right: float, y: float, text: str, colour: str) -> None:
        """A small filled label that ends at `right` and has its middle at y."""
        width = 7.4 * len(text) + 12
        self._parts.append(
            f'<rect x="{right - width:g}" y="{y - 8.5:g}" width="{width:g}" height="17" rx="5" '
            f'fill="{colour}"/>'
        )
        self.text(right - width / 2, y + 4, text, 11, _PAPER, anchor="middle", bold=True)

    def render(self) -> str:
        """The drawing as the text of an SVG file."""
        width, height = self._size
        tips = "\n".join(
            f'<marker id="{self._tip(colour)}" viewBox="0 0 8 8" refX="6.5" refY="4" markerWidth="8" '
            f'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 8 4 0 8z" '
            f'fill="{colour}"/></marker>'
            for colour in self._colours
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="{_FONT}" role="img">'
        )
        sheet = (
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="14" fill="{_PAPER}" '
            f'stroke="{_BORDER}"/>'
        )
        parts = [
            head,
            f"<title>{escape(self._title)}</title>",
            f"<defs>\n{tips}\n</defs>",
            sheet,
            *self._parts,
        ]
        return "\n".join([*parts, "</svg>", ""])

    def _tip(self, colour: str) -> str:
        if colour not in self._colours:
            self._colours.append(colour)
        return f"tip{self._colours.index(colour)}"

    def _line(self, points: Sequence[Point], colour: str, width: float, more: str = "") -> None:
        path = " ".join(f"{x:g} {y:g}" for x, y in points)
        self._parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{more}/>'
        )


def _spans(text: str, size: float, aside: str) -> str:
    """The content of a text element: `text` with its subscripts, then `aside`."""
    pieces = re.split(r"\b([FM])_(\w+)", text)
    runs = [(pieces[0], "", False)]
    for letter, below, rest in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        small = f' font-size="{0.74 * size:.3g}"'
        runs += [(letter, ' font-style="italic"', False), (below, small, True), (rest, "", False)]
    runs.append((aside, f' dx="5" font-size="10.5" fill="{FAINT}"', False))
    written, lowered = "", False
    for piece, style, low in runs:
        if not piece:
            continue
        # dy moves everything that follows, too.
        shift = "" if low == lowered else f' dy="{(low - lowered) * 0.24 * size:.3g}"'
        written += f"<tspan{style}{shift}>{escape(piece)}</tspan>" if style or shift else escape(piece)
        lowered = low
    return written
