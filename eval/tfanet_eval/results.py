"""Results expression by expression: what is kept of each, and the file of JSON lines that holds it.

The first line says what was measured, on what and in which convention; each further line is one expression.
Lines are appended as calls of the engine end, so an interrupted run loses none that was finished.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfanet.data.refer import usual_split_by
from tfanet.errors import UserError
from tfanet.files import require_file, require_writable, write_text
from tfanet_engines.parity import ParityFigures
from tfanet_eval.metrics import convention_named

FORMAT = "tfanet-results"
VERSION = 1


@dataclass(frozen=True)
class Against:
    """What the reference gave for the same expression."""

    intersection: int
    union: int
    parity: ParityFigures
    """Of this one pair of logits, at the model's S x S."""


@dataclass(frozen=True)
class Record:
    """One expression and what the engine gave for it."""

    split: str
    index: int
    """Its place among the split's samples, from 0."""
    image: int
    ref: int
    sentence: int
    """REFER's `sent_id`."""
    text: str
    intersection: int
    """Pixels, at the convention's size."""
    union: int
    area: float
    """The truth's share of the picture, 0..1."""
    distractors: int
    """Other annotated objects of the same category in the picture."""
    ms: float
    """The call's duration by its images, in milliseconds."""
    call: int
    """The number of the engine's call within the split."""
    batch: int
    """Images of that call."""
    level: str | None = None
    """Level of language, of synthetic data only."""
    against: Against | None = None

    def to_json(self, iou: float) -> str:
        """One line, its `iou` (0..1, in the run's convention) among the fields."""
        fields = dataclasses.asdict(self)
        against = fields.pop("against")
        if self.level is None:
            del fields["level"]
        return json.dumps(fields | {"iou": iou} | ({"reference": against} if against else {}))

    @classmethod
    def from_json(cls, line: str) -> Record:
        """`ValueError`, `TypeError` or `KeyError` when the line is no record."""
        fields = json.loads(line)
        del fields["iou"]
        against = fields.pop("reference", None)
        if against is not None:
            against = Against(**against | {"parity": ParityFigures(**against["parity"])})
        return cls(**fields, against=against)


@dataclass(frozen=True)
class Results:
    """A results file as read."""

    path: Path
    run: dict[str, Any]
    """What was measured: engine, reference, data, convention. Two parts of one run agree in it."""
    environment: dict[str, Any]
    """Where: versions, machine."""
    records: tuple[Record, ...]


class ResultsFile:
    """A results file that is being written, by one process or by several at once.

    `start` makes or continues it; `append` adds records in one write, which the system keeps whole;
    `finish` puts the lines in order.
    """

    def __init__(self, path: Path, run: dict[str, Any], environment: dict[str, Any]) -> None:
        self.path = path
        self.convention = convention_named(run["convention"])
        self._run, self._environment = run, environment

    def start(self, *, resume: bool) -> list[Record]:
        """Begin the file, or with `resume` continue it; the records of the calls that were finished.

        `UserError` when the file exists and is not to be resumed, or holds another run.
        """
        require_writable(self.path)
        done: list[Record] = []
        if self.path.exists():
            if not resume:
                raise UserError(f"{self.path} exists; continue it with --resume, or give another name")
            if self.path.stat().st_size:
                found = read_results(self.path, unfinished=True)
                self._check(found)
                done = whole_calls(found.records)
        self._write(done)
        return done

    def append(self, records: Sequence[Record]) -> None:
        """Add the records of a finished call."""
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, "".join(map(self._line, records)).encode())
        finally:
            os.close(handle)

    def finish(self) -> list[Record]:
        """Every record, in the order of the data set, which is then the file's."""
        order = {name: place for place, name in enumerate(self._run["splits"])}
        records = sorted(read_results(self.path).records, key=lambda r: (order[r.split], r.index))
        self._write(records)
        return records

    def _line(self, record: Record) -> str:
        return record.to_json(self.convention.iou(record.intersection, record.union)) + "\n"

    def _write(self, records: Sequence[Record]) -> None:
        head = {"format": FORMAT, "version": VERSION, "run": self._run, "environment": self._environment}
        lines = [json.dumps(head) + "\n", *map(self._line, records)]
        write_text(self.path, "".join(lines))

    def _check(self, found: Results) -> None:
        pairs = {name: (value, found.run.get(name)) for name, value in self._run.items()}
        pairs["versions"] = self._environment["versions"], found.environment.get("versions")
        for name, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise UserError(
                    f"{self.path} cannot be continued: its {name} is {json.dumps(theirs)}, of this run it is "
                    f"{json.dumps(ours)}; give another --results"
                )


def read_results(path: str | Path, *, unfinished: bool = False) -> Results:
    """Read a results file; with `unfinished` a half-written last line is left out.

    Raises `UserError` when it is missing, no results file, of another version, or damaged at any line.
    """
    path = require_file(path, "results file")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"results file {path} cannot be read: {error}") from error
    last = lines.pop()
    if last and not unfinished:
        raise UserError(f"results file {path} ends in the middle of a line; continue its run with --resume")
    try:
        head = json.loads(lines[0]) if lines else json.loads(last)
        known = head["format"] == FORMAT
        version, run, environment = head["version"], head["run"], head["environment"]
        if "split_by" not in run:  # a file of before it was noted
            run["split_by"] = usual_split_by(run.get("data", ""), run["dataset"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no results file of tfanet-eval --results") from error
    if not known or version != VERSION:
        raise UserError(f"{path} is {head['format']} version {version}, not {FORMAT} version {VERSION}")
    records = []
    for number, line in enumerate(lines[1:], 2):
        try:
            records.append(Record.from_json(line))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"results file {path}, line {number} is damaged") from error
    return Results(path, run, environment, tuple(records))


def whole_calls(records: Sequence[Record]) -> list[Record]:
    """The records, each once, whose call of the engine has all its lines: those that need not be repeated."""
    once = {(record.split, record.index): record for record in records}
    present = Counter((record.split, record.call) for record in once.values())
    return [record for record in once.values() if present[record.split, record.call] == record.batch]


@dataclass(frozen=True)
class Pairing:
    """The expressions that two results files share."""

    pairs: tuple[tuple[Record, Record], ...]
    only_first: int
    only_second: int


def paired(first: Results, second: Results) -> Pairing:
    """`UserError` when one is empty, they are of other data or another convention, or share no expression."""
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
    shared = [key for key in left if key in right]
    if not shared:
        raise UserError(f"{first.path} and {second.path} share no expression")
    pairs = tuple((left[key], right[key]) for key in shared)
    return Pairing(pairs, len(left) - len(shared), len(right) - len(shared))
