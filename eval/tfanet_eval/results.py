"""Results per expression: one record each, and the JSON Lines file that holds them (docs/evaluation.md).

The first line describes the run: what was measured, on what data, in which convention. Every other line is
one record. Lines are appended as engine calls finish, so an interrupted run loses no finished call.
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
from tfanet.validation import from_json
from tfanet_engines.parity import ParityMetrics
from tfanet_eval.metrics import convention_named

FORMAT = "tfanet-results"
VERSION = 1


@dataclass(frozen=True)
class ReferenceResult:
    """The reference's result for the same expression."""

    intersection: int
    union: int
    parity: ParityMetrics
    """Of this one pair of logits, at the model's S x S."""


@dataclass(frozen=True)
class Record:
    """One expression and the engine's result for it."""

    split: str
    index: int
    """Its index among the split's samples, from 0."""
    image: int
    ref: int
    sentence: int
    """REFER's `sent_id`."""
    text: str
    intersection: int
    """Pixels, at the convention's size."""
    union: int
    area: float
    """Area of the target relative to the image, 0..1."""
    distractors: int
    """Other annotated objects of the same category in the image."""
    ms: float
    """Milliseconds per image: the call's duration divided by its batch size."""
    call: int
    """The number of the engine call within the split."""
    batch: int
    """Images in that call."""
    level: str | None = None
    """Language level; synthetic data only."""
    reference: ReferenceResult | None = None

    def to_json(self, iou: float) -> str:
        """One line of JSON, with `iou` (0..1, in the run's convention) among the fields."""
        fields = dataclasses.asdict(self)
        # Half a surrogate pair is not JSON.
        fields["text"] = self.text.encode("utf-8", "replace").decode("utf-8")
        reference = fields.pop("reference")
        if self.level is None:
            del fields["level"]
        return json.dumps(fields | {"iou": iou} | ({"reference": reference} if reference else {}))


@dataclass(frozen=True)
class Results:
    """The contents of a results file."""

    path: Path
    run: dict[str, Any]
    """What was measured: engine, reference, data, convention. A run can be resumed only if it is equal."""
    environment: dict[str, Any]
    """Versions and machine."""
    records: tuple[Record, ...]


class ResultsFile:
    """Writes a results file, from one process or from several at once.

    `start` creates or continues the file, `append` adds records in one atomic write, `finish` sorts the
    lines.
    """

    def __init__(self, path: Path, run: dict[str, Any], environment: dict[str, Any]) -> None:
        self.path = path
        self.convention = convention_named(run["convention"])
        self._run, self._environment = run, environment

    def start(self, *, resume: bool) -> list[Record]:
        """Create the file, or continue it with `resume`; returns the records of the finished calls.

        Raises `UserError` if the file exists without `resume`, or holds another run.
        """
        require_writable(self.path)
        done: list[Record] = []
        if self.path.exists():
            if not resume:
                raise UserError(f"{self.path} exists; continue it with --resume, or give another name")
            if self.path.stat().st_size:
                present = read_results(self.path, unfinished=True)
                self._require_same_run(present)
                done = finished_calls(present.records)
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
        """Sort the file in the order of the data set; returns all its records."""
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

    def _require_same_run(self, present: Results) -> None:
        pairs = {name: (value, present.run.get(name)) for name, value in self._run.items()}
        pairs["versions"] = self._environment["versions"], present.environment.get("versions")
        for name, (this, other) in pairs.items():
            if this != other:
                raise UserError(
                    f"{self.path} cannot be continued: its {name} is {json.dumps(other)}, of this run it is "
                    f"{json.dumps(this)}; give another --results"
                )


def read_results(path: str | Path, *, unfinished: bool = False) -> Results:
    """Read a results file; with `unfinished` an incomplete last line is left out.

    Raises `UserError` if it is missing, not a results file, of another version, or invalid in any line.
    """
    path = require_file(path, "results file")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"results file {path} cannot be read: {error}") from error
    last = lines.pop()
    if last and not unfinished:
        raise UserError(f"results file {path} ends with an incomplete line; continue its run with --resume")
    try:
        head = json.loads(lines[0] if lines else last)
        known = head["format"] == FORMAT
        version, run, environment = head["version"], head["run"], head["environment"]
        if "split_by" not in run:  # written before this field existed
            run["split_by"] = usual_split_by(run.get("data", ""), run["dataset"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a results file of tfanet-eval --results") from error
    if not known or version != VERSION:
        raise UserError(f"{path} is {head['format']} version {version}, not {FORMAT} version {VERSION}")
    records = (
        from_json(Record, line, f"results file {path}, line {number}")
        for number, line in enumerate(lines[1:], 2)
    )
    return Results(path, run, environment, tuple(records))


def finished_calls(records: Sequence[Record]) -> list[Record]:
    """The records, without duplicates, of the engine calls that have all their records."""
    once = {(record.split, record.index): record for record in records}
    present = Counter((record.split, record.call) for record in once.values())
    return [record for record in once.values() if present[record.split, record.call] == record.batch]
