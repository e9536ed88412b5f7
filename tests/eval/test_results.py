"""The results file: its contents, and resuming an interrupted run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_engines import record, rows

from tfanet.data.refer import ReferDataset
from tfanet.errors import UserError
from tfanet.validation import from_json
from tfanet_eval.cli.evaluate import main
from tfanet_eval.results import Record, read_results

FILE = "results.jsonl"
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]


def test_file_has_a_record_per_expression_and_a_description_of_the_run(evaluated):
    done = evaluated("--results", FILE, "--json", "all.json")
    assert done.code == 0, done.err
    assert "of the CPU time" in done.out
    results = read_results(FILE)
    assert results.run["convention"] == "original"
    assert len(results.run["engine_sha256"]) == 64
    assert "torch" in results.environment["versions"]
    summary = json.loads(Path("all.json").read_text(encoding="utf-8"))["splits"]
    for split, values in summary.items():
        records = [row for row in rows(FILE) if row["split"] == split]
        assert [row["index"] for row in records] == list(range(values["metrics"]["count"]))
        assert sum(row["iou"] for row in records) / len(records) == pytest.approx(values["metrics"]["mIoU"])
        assert {row["reference"]["parity"]["pairs"] for row in records} == {1}


@pytest.fixture
def full_text(full_run, evaluated) -> str:
    """The results file of a full run, copied to the current folder."""
    shutil.copy(full_run / FILE, FILE)
    return Path(FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize("cut", ["half-a-line", "half-a-call", "only-the-head", "empty"])
def test_truncated_file_is_resumed_to_the_same_records(evaluated, full_run, full_text, cut):
    lines = full_text.splitlines(keepends=True)
    kept = {
        "half-a-line": "".join(lines[:6])[:-40], "half-a-call": "".join(lines[:4]),
        "only-the-head": lines[0], "empty": "",
    }[cut]  # fmt: skip
    Path(FILE).write_text(kept, encoding="utf-8")
    done = evaluated("--results", FILE, "--resume", "--json", "resumed.json")
    assert done.code == 0, done.err
    assert rows(FILE) == rows(full_run / FILE)
    files = (full_run / "summary.json", Path("resumed.json"))
    summaries = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for summary in summaries:
        for split in summary["splits"].values():
            del split["latency"]
    assert summaries[0] == summaries[1]


def test_resuming_a_finished_file_measures_nothing(evaluated, full_text):
    done = evaluated("--results", FILE, "--resume")
    assert done.code == 0, done.err
    assert "nothing was measured" in done.out
    assert Path(FILE).read_text(encoding="utf-8") == full_text


def test_killed_run_is_resumed(command, checkpoint, shapes_root, tmp_path):
    """SIGKILL after some lines, twice; finished calls are not repeated."""
    arguments = [
        "--engine",
        str(checkpoint),
        "--data",
        str(shapes_root),
        "--split",
        "val",
        "--split",
        "testA",
    ]
    full = command(main, *arguments, "--results", "full.jsonl")
    assert full.code == 0, full.err
    code = "import sys; from tfanet_eval.cli.evaluate import main; sys.argv[0] = 'tfanet-eval'; main()"
    file, kept = tmp_path / FILE, 0
    for lines in (3, 9):
        line = [sys.executable, "-c", code, *arguments, "--results", str(file), "--resume"]
        child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < lines):
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        kept = file.read_bytes().count(b"\n") - 1
    times = [json.loads(line)["ms"] for line in file.read_text("utf-8").splitlines()[1 : kept + 1]]
    done = command(main, *arguments, "--results", FILE, "--resume")
    assert done.code == 0, done.err
    assert rows(FILE) == rows("full.jsonl")
    assert times == [json.loads(line)["ms"] for line in file.read_text("utf-8").splitlines()[1 : kept + 1]]


OTHER_RUNS = [
    pytest.param(["--convention", "cris"], "convention", id="convention"),
    pytest.param(["--limit", 3], "limit", id="limit"),
    pytest.param(["--shuffle-expressions"], "shuffled_sentences", id="shuffled"),
]


@pytest.mark.parametrize(("options", "field"), OTHER_RUNS)
def test_results_of_another_run_are_not_resumed(evaluated, full_text, options, field):
    done = evaluated("--results", FILE, "--resume", *options)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"its {field} is" in done.err
    assert Path(FILE).read_text(encoding="utf-8") == full_text


def test_results_of_another_engine_are_not_resumed(command, checkpoint, other_checkpoint, shapes_root):
    codes, errors = [], ""
    for engine in (checkpoint, other_checkpoint):
        done = command(
            main, "--engine", engine, "--data", shapes_root, "--limit", 1, "--results", FILE, "--resume"
        )
        codes.append(done.code)
        errors += done.err
    assert codes == [0, 2]
    assert "cannot be continued: its engine is" in errors


def test_split_by_is_part_of_the_run(command, small_onnx, gref_root):
    def evaluated(*options):
        common = ("--engine", small_onnx, "--data", gref_root, "--dataset", "refcocog", "--results", FILE)
        return command(main, *common, *options)

    done = evaluated("--json", "umd.json")
    assert done.code == 0, done.err
    assert json.loads(Path("umd.json").read_text(encoding="utf-8"))["split_by"] == "umd"
    umd, text = rows(FILE), Path(FILE).read_text(encoding="utf-8")
    assert read_results(FILE).run["split_by"] == "umd"
    other = evaluated("--resume", "--split-by", "google")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert 'its split_by is "umd", of this run it is "google"' in other.err
    # A file that was written before this field existed.
    Path(FILE).write_text(text.replace(' "split_by": "umd",', "", 1), encoding="utf-8")
    assert "split_by" not in json.loads(Path(FILE).read_text(encoding="utf-8").splitlines()[0])["run"]
    assert evaluated("--resume", "--split-by", "google").code == 2
    for options in ([], ["--split-by", "umd"]):
        assert evaluated("--resume", *options).code == 0
        assert Path(FILE).read_text(encoding="utf-8") == text
    google = ReferDataset(gref_root, "refcocog", "val", "google")
    for workers in (1, 2):
        Path(FILE).unlink()
        done = evaluated("--split-by", "google", "--workers", workers, "--report", "page.html")
        assert done.code == 0, done.err
        assert "on refcocog (google): " in done.out
        assert [row["text"] for row in rows(FILE)] == [pair.text for pair in google]
        assert "<h1>refcocog (google): val</h1>" in Path("page.html").read_text(encoding="utf-8")
    assert not {row["ref"] for row in rows(FILE)} & {row["ref"] for row in umd}


def test_errors_with_results(evaluated, command):
    done = command(main, "--resume")
    assert (done.code, "--results" in done.err) == (2, True)
    Path(FILE).write_text("something else\n", encoding="utf-8")
    for options, message in (([], "exists"), (["--resume"], "not a results file")):
        done = evaluated("--results", FILE, *options)
        assert (done.code, message in done.err) == (2, True)
    assert Path(FILE).read_text(encoding="utf-8") == "something else\n"


def test_invalid_line_is_an_error_with_its_number(full_text):
    lines = full_text.splitlines(keepends=True)
    text = '"intersection": "many"'
    for line, message in (
        ("{}\n", "line 4 is invalid: split: Field required"),
        (re.sub(r'"intersection": \d+', text, lines[3], count=1), "line 4 is invalid: intersection: "),
        ("not JSON\n", "line 4 is invalid: Invalid JSON"),
    ):
        Path(FILE).write_text("".join([*lines[:3], line, *lines[4:]]), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read_results(FILE)
    Path(FILE).write_text("".join(lines)[: -os.linesep.__len__()], encoding="utf-8")
    with pytest.raises(UserError, match="--resume"):
        read_results(FILE)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        pytest.param("café 漢字 🍎", "café 漢字 🍎", id="unicode"),
        pytest.param("red \ud800 mug", "red ? mug", id="half-a-surrogate-pair"),
        pytest.param('"\\\n', '"\\\n', id="escapes"),
    ],
)
def test_any_text_is_read_as_written(text, written):
    line = dataclasses.replace(record(0, intersection=1, union=2), text=text).to_json(0.5)
    assert from_json(Record, line, "a line").text == written
