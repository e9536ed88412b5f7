"""Parts of the samples, and two results files against each other."""

from __future__ import annotations

import dataclasses

import fake_engines
import pytest

from tfanet.errors import UserError
from tfanet_eval.breakdown import breakdown
from tfanet_eval.cli.compare import comparison
from tfanet_eval.cli.evaluate import main
from tfanet_eval.metrics import CONVENTIONS
from tfanet_eval.results import ResultsFile, read_results

RULES = CONVENTIONS["original"]


def record(index, intersection, **fields):
    """Of 100 pixels, in a picture of its own."""
    return dataclasses.replace(
        fake_engines.record(index, image=index, intersection=intersection, union=100), **fields
    )


@pytest.fixture
def written(tmp_path):
    def write(name, records, **run):
        path = tmp_path / name
        head = {"engine": name, "dataset": "refcoco", "convention": "original", "splits": ["val"]}
        file = ResultsFile(path, head | {"shuffled_sentences": False} | run, {"versions": {}})
        file.start(resume=False)
        file.append(records)
        return path

    return write


def test_parts_hold_every_sample_once_in_their_order():
    records = [
        record(0, 10, text="dog", area=0.005, distractors=0),
        record(1, 20, text="the dog on the Left", area=0.3),
        record(2, 30, text="a b c d e f g h i j", area=0.02, distractors=7),
    ]  # fmt: skip
    rows = breakdown(records, RULES)
    found = {
        by: {row["group"]: row["mIoU"] for row in rows if row["by"] == by} for by in ("sentence", "position")
    }
    assert found["sentence"] == {"1-2 words": 0.1, "3-5 words": 0.2, "9+ words": 0.3}
    assert found["position"] == {"with a position word": 0.2, "without a position word": pytest.approx(0.2)}
    for by in {row["by"] for row in rows}:
        assert sum(row["count"] for row in rows if row["by"] == by) == 3


def test_levels_are_a_part_where_there_are_any():
    levels = ("all", "relations", "attributes", None)
    rows = breakdown([dataclasses.replace(record(i, 10 * i), level=x) for i, x in enumerate(levels)], RULES)
    found = {row["group"]: row["mIoU"] for row in rows if row["by"] == "level"}
    assert list(found.items()) == [("level attributes", 0.2), ("level relations", 0.1), ("level all", 0.0)]
    assert not [row for row in breakdown([record(0, 10)], RULES) if row["by"] == "level"]


def test_two_files_expression_by_expression(written, command):
    first = [record(i, 50 + i % 3) for i in range(40)]
    second = [
        dataclasses.replace(r, intersection=r.intersection + (10 if r.index == 7 else 1)) for r in first
    ]
    paths = written("a.jsonl", first), written("b.jsonl", second[1:])
    found = comparison(*(read_results(path) for path in paths))
    assert (found["better"], found["worse"], found["same"], found["only_first"]) == (39, 0, 0, 1)
    assert found["difference"]["mIoU"] == pytest.approx((38 * 0.01 + 0.1) / 39)
    low, high = found["intervals"]["mIoU"]
    assert 0.0099 < low < found["difference"]["mIoU"] < high
    assert found["changed"][0][1].index == 7
    done = command(main, "compare", *paths)
    assert done.code == 0, done.err
    assert "B is better on 39, worse on 0, the same on 0" in done.out
    assert "+10.0 IoU: val image 7" in done.out


@pytest.mark.parametrize(
    ("run", "named"),
    [
        ({"convention": "cris"}, "their convention is original and cris"),
        ({"split_by": "google"}, "their split_by is unc and google"),
        ({}, "no expression"),
    ],
)
def test_files_that_cannot_be_compared(written, command, run, named):
    done = command(
        main, "compare", written("a.jsonl", [record(0, 1)]), written("b.jsonl", [record(1, 1)], **run)
    )
    assert (done.code, named in done.err) == (2, True)


def test_a_missing_file_is_a_mistake(command):
    done = command(main, "compare", "none.jsonl", "none.jsonl")
    assert (done.code, "none.jsonl does not exist" in done.err) == (2, True)
    with pytest.raises(UserError):
        read_results("none.jsonl")
