"""Figures of parts of the samples: by sentence, object, rivals, position words and level of language."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from tfanet.data.scene import LEVELS
from tfanet_eval.metrics import Convention, SegmentationMetrics, resample
from tfanet_eval.results import Record

_PLACES = """
left right top bottom upper lower middle center centre front back behind above below under over near next
beside between far farthest furthest closest nearest corner side edge leftmost rightmost topmost bottommost
first second third last
"""
POSITION_WORDS = frozenset(_PLACES.split())


def _binned(value: float, edges: Sequence[float], names: Sequence[str]) -> str:
    return names[sum(value >= edge for edge in edges)]


def _words(record: Record) -> str:
    return _binned(len(record.text.split()), (3, 6, 9), ("1-2 words", "3-5 words", "6-8 words", "9+ words"))


def _area(record: Record) -> str:
    names = ("under 1 % of the picture", "1-5 %", "5-20 %", "20 % or more")
    return _binned(record.area, (0.01, 0.05, 0.2), names)


def _rivals(record: Record) -> str:
    names = ("no other of its class", "1 other", "2 others", "3 or more others")
    return _binned(record.distractors, (1, 2, 3), names)


def _position(record: Record) -> str:
    spoken = POSITION_WORDS & set(re.findall(r"[a-z]+", record.text.lower()))
    return "with a position word" if spoken else "without a position word"


def _level(record: Record) -> str | None:
    return record.level and f"level {record.level}"


GROUPS: dict[str, Callable[[Record], str | None]] = {
    "sentence": _words, "object": _area, "rivals": _rivals, "position": _position, "level": _level,
}  # fmt: skip
"""The group that a record is in, or None for records that the question does not suit."""


def breakdown(records: Sequence[Record], rules: Convention) -> list[dict[str, Any]]:
    """A row for each group that has a sample: `by`, `group`, figures 0..1, `count`, and mIoU's `interval`."""
    rows = []
    for by, name in GROUPS.items():
        parts: dict[str, list[Record]] = {}
        for record in records:
            if group := name(record):
                parts.setdefault(group, []).append(record)
        for group, part in sorted(parts.items(), key=lambda item: _order(item[0])):
            metrics = SegmentationMetrics.of(((r.intersection, r.union) for r in part), rules)
            interval = resample(part, rules).interval("mIoU")
            rows.append({"by": by, "group": group, **metrics.result(), "interval": interval})
    return rows


def _order(group: str) -> tuple[int, str]:
    """Levels as in `LEVELS`; else `under`, `no` and `without` first, then by the number of a name's start."""
    if (level := group.removeprefix("level ")) in LEVELS:
        return LEVELS.index(level), group
    number = re.match(r"\d+", group)
    return (int(number[0]) if number else (-1 if group.startswith(("under", "no ")) else 0)), group
