"""Metrics by group of samples, and the comparison of two results files."""

from __future__ import annotations

import dataclasses

import fake_engines
import pytest

from tfanet.errors import UserError
from tfanet_eval.analysis import breakdown, compare_results
from tfanet_eval.cli.evaluate import main
from tfanet_eval.metrics import CONVENTIONS
from tfanet_eval.results import ResultsFile, read_results

ORIGINAL = CONVENTIONS["original"]


def record(index, intersection, **fields):
    """A record with a union of 100 pixels, in an image of its own."""
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


def test_breakdown_has_every_sample_once_per_criterion():
    records = [
        record(0, 10, text="dog", area=0.005, distractors=0),
        record(1, 20, text="the dog on the Left", area=0.3),
        record(2, 30, text="a b c d e f g h i j", area=0.02, distractors=7),
    ]  # fmt: skip
    rows = breakdown(records, ORIGINAL)
    miou = {
        by: {row["group"]: row["mIoU"] for row in rows if row["by"] == by} for by in ("length", "position")
    }
    assert miou["length"] == {"1-2 words": 0.1, "3-5 words": 0.2, "9+ words": 0.3}
    assert miou["position"] == {"with a position word": 0.2, "without a position word": pytest.approx(0.2)}
    for by in {row["by"] for row in rows}:
        assert sum(row["count"] for row in rows if row["by"] == by) == 3


def test_breakdown_by_level_exists_only_with_levels():
    levels = ("all", "relations", "attributes", None)
    rows = breakdown(
        [dataclasses.replace(record(i, 10 * i), level=x) for i, x in enumerate(levels)], ORIGINAL
    )
    miou = {row["group"]: row["mIoU"] for row in rows if row["by"] == "level"}
    assert list(miou.items()) == [("level attributes", 0.2), ("level relations", 0.1), ("level all", 0.0)]
    assert not [row for row in breakdown([record(0, 10)], ORIGINAL) if row["by"] == "level"]


def test_compare_two_results_files(written, command):
    first = [record(i, 50 + i % 3) for i in range(40)]
    second = [
        dataclasses.replace(r, intersection=r.intersection + (10 if r.index == 7 else 1)) for r in first
    ]
    paths = written("a.jsonl", first), written("b.jsonl", second[1:])
    comparison = compare_results(*(read_results(path) for path in paths))
    assert (comparison.better, comparison.worse, comparison.same) == (39, 0, 0)
    assert (comparison.only_first, comparison.only_second) == (1, 0)
    assert comparison.difference["mIoU"] == pytest.approx((38 * 0.01 + 0.1) / 39)
    low, high = comparison.intervals["mIoU"]
    assert 0.0099 < low < comparison.difference["mIoU"] < high
    assert comparison.changes[0][1].index == 7
    done = command(main, "compare", *paths)
    assert done.code == 0, done.err
    assert "B is better on 39, worse on 0, the same on 0" in done.out
    assert "+10.0 IoU: val image 7" in done.out


@pytest.mark.parametrize(
    ("run", "named"),
    [
        ({"convention": "cris"}, "their convention is original and cris"),
        ({"split_by": "google"}, "their split_by is unc and google"),
        ({}, "no expression in common"),
    ],
)
def test_results_that_cannot_be_compared_are_an_error(written, command, run, named):
    done = command(
        main, "compare", written("a.jsonl", [record(0, 1)]), written("b.jsonl", [record(1, 1)], **run)
    )
    assert (done.code, named in done.err) == (2, True)


def test_missing_results_file_is_an_error(command):
    done = command(main, "compare", "none.jsonl", "none.jsonl")
    assert (done.code, "none.jsonl does not exist" in done.err) == (2, True)
    with pytest.raises(UserError):
        read_results("none.jsonl")
