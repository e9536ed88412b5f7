"""What records show: metrics by group of samples, and two results files compared expression by expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfanet.data.scene import LEVELS
from tfanet.errors import UserError
from tfanet_eval.metrics import METRICS, Convention, Interval, SegmentationMetrics, convention_named, resample
from tfanet_eval.results import Record, Results

_WORDS = """
left right top bottom upper lower middle center centre front back behind above below under over near next
beside between far farthest furthest closest nearest corner side edge leftmost rightmost topmost bottommost
first second third last
"""
POSITION_WORDS = frozenset(_WORDS.split())


def _bin(value: float, edges: Sequence[float], names: Sequence[str]) -> str:
    return names[sum(value >= edge for edge in edges)]


def _by_length(record: Record) -> str:
    names = ("1-2 words", "3-5 words", "6-8 words", "9+ words")
    return _bin(len(record.text.split()), (3, 6, 9), names)


def _by_area(record: Record) -> str:
    names = ("under 1 % of the image", "1-5 %", "5-20 %", "20 % or more")
    return _bin(record.area, (0.01, 0.05, 0.2), names)


def _by_distractors(record: Record) -> str:
    names = ("no other of its class", "1 other", "2 others", "3 or more others")
    return _bin(record.distractors, (1, 2, 3), names)


def _by_position_word(record: Record) -> str:
    found = POSITION_WORDS & set(re.findall(r"[a-z]+", record.text.lower()))
    return "with a position word" if found else "without a position word"


def _by_level(record: Record) -> str | None:
    return record.level and f"level {record.level}"


GROUPS: dict[str, Callable[[Record], str | None]] = {
    "length": _by_length, "area": _by_area, "distractors": _by_distractors, "position": _by_position_word,
    "level": _by_level,
}  # fmt: skip
"""For each criterion the group that a record is in; None if the criterion does not apply to it."""


def breakdown(records: Sequence[Record], convention: Convention) -> list[dict[str, Any]]:
    """A row per group that has samples: `by`, `group`, metrics 0..1, `count`, and the `interval` of mIoU."""
    rows = []
    for by, group_of in GROUPS.items():
        groups: dict[str, list[Record]] = {}
        for record in records:
            if group := group_of(record):
                groups.setdefault(group, []).append(record)
        for group, members in sorted(groups.items(), key=lambda item: _order(item[0])):
            interval = resample(members, convention).interval("mIoU")
            rows.append(
                {"by": by, "group": group, **metrics_of(members, convention).result(), "interval": interval}
            )
    return rows


def _order(group: str) -> tuple[int, str]:
    """Levels in the order of `LEVELS`; otherwise names with `under` or `no` first, then by leading number."""
    if (level := group.removeprefix("level ")) in LEVELS:
        return LEVELS.index(level), group
    number = re.match(r"\d+", group)
    return (int(number[0]) if number else (-1 if group.startswith(("under", "no ")) else 0)), group


def metrics_of(records: Sequence[Record], convention: Convention) -> SegmentationMetrics:
    """The metrics of `records`."""
    return SegmentationMetrics.of(((r.intersection, r.union) for r in records), convention)


@dataclass(frozen=True)
class Pairing:
    """The expressions that two results files have in common."""

    pairs: tuple[tuple[Record, Record], ...]
    only_first: int
    only_second: int


def pair_records(first: Results, second: Results) -> Pairing:
    """Pair the records of two results files by split, reference and expression.

    Raises `UserError` if a file has no records, if data or convention differ, or if no expression is common.
    """
    for file in (first, second):
        if not file.records:
            raise UserError(f"{file.path} has no results yet")
    for field in ("dataset", "split_by", "convention", "shuffled_sentences"):
        if first.run[field] != second.run[field]:
            raise UserError(
                f"{first.path} and {second.path} cannot be compared: their {field} is {first.run[field]} "
                f"and {second.run[field]}"
            )
    left, right = ({(r.split, r.ref, r.sentence): r for r in file.records} for file in (first, second))
    common = [key for key in left if key in right]
    if not common:
        raise UserError(f"{first.path} and {second.path} have no expression in common")
    pairs = tuple((left[key], right[key]) for key in common)
    return Pairing(pairs, len(left) - len(common), len(right) - len(common))


@dataclass(frozen=True)
class ResultsComparison:
    """Two results files on their common expressions; all metrics and IoUs 0..1."""

    metrics: tuple[dict[str, float], dict[str, float]]
    """Of each file: `METRICS`, `count` and `ms per image` (median)."""
    difference: dict[str, float]
    """Second minus first, by the names in `METRICS`."""
    intervals: dict[str, Interval]
    """95 % intervals of `difference`."""
    changes: tuple[tuple[float, Record, Record], ...]
    """Change of IoU, second minus first, and the two records; largest change first."""
    only_first: int
    only_second: int

    @property
    def better(self) -> int:
        """Expressions whose IoU is higher in the second file."""
        return sum(change > 0 for change, _, _ in self.changes)

    @property
    def worse(self) -> int:
        return sum(change < 0 for change, _, _ in self.changes)

    @property
    def same(self) -> int:
        return sum(change == 0 for change, _, _ in self.changes)


def compare_results(first: Results, second: Results) -> ResultsComparison:
    """Compare two results files on their common expressions; raises as `pair_records`."""
    pairing, convention = pair_records(first, second), convention_named(first.run["convention"])
    sides = [[pair[side] for pair in pairing.pairs] for side in (0, 1)]
    before, after = (
        metrics_of(side, convention).result() | {"ms per image": float(np.median([r.ms for r in side]))}
        for side in sides
    )
    resampled = [resample(side, convention) for side in sides]
    ious = [np.array([convention.iou(r.intersection, r.union) for r in side]) for side in sides]
    change = ious[1] - ious[0]
    return ResultsComparison(
        metrics=(before, after),
        difference={name: after[name] - before[name] for name in METRICS},
        intervals={name: resampled[1].difference(resampled[0], name) for name in METRICS},
        changes=tuple(
            (float(change[i]), *pairing.pairs[i]) for i in np.argsort(-np.abs(change), kind="stable")
        ),
        only_first=pairing.only_first,
        only_second=pairing.only_second,
    )
