"""The results file: what it holds, and how an interrupted run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_engines import rows

from tfanet.data.refer import ReferDataset
from tfanet.errors import UserError
from tfanet_eval.cli.evaluate import main
from tfanet_eval.results import read_results

FILE = "results.jsonl"
pytestmark = pytest.mark.usefixtures("one_thread")


def test_one_line_an_expression_with_all_that_a_reader_needs(evaluated):
    done = evaluated("--results", FILE, "--json", "all.json")
    assert done.code == 0, done.err
    assert "of the CPU time" in done.out
    found = read_results(FILE)
    assert found.run["convention"] == "original"
    assert len(found.run["engine_sha256"]) == 64
    assert "torch" in found.environment["versions"]
    figures = json.loads(Path("all.json").read_text(encoding="utf-8"))["splits"]
    for split, figure in figures.items():
        mine = [row for row in rows(FILE) if row["split"] == split]
        assert [row["index"] for row in mine] == list(range(figure["metrics"]["count"]))
        assert sum(row["iou"] for row in mine) / len(mine) == pytest.approx(figure["metrics"]["mIoU"])
        assert {row["reference"]["parity"]["pairs"] for row in mine} == {1}


@pytest.mark.parametrize("cut", ["half-a-line", "half-a-call", "only-the-head", "empty"])
def test_a_cut_file_is_continued_and_ends_the_same(evaluated, cut):
    assert evaluated("--results", FILE, "--json", "whole.json").code == 0
    whole, text = rows(FILE), Path(FILE).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    kept = {
        "half-a-line": "".join(lines[:6])[:-40], "half-a-call": "".join(lines[:4]),
        "only-the-head": lines[0], "empty": "",
    }[cut]  # fmt: skip
    Path(FILE).write_text(kept, encoding="utf-8")
    done = evaluated("--results", FILE, "--resume", "--json", "resumed.json")
    assert done.code == 0, done.err
    assert rows(FILE) == whole
    tables = [json.loads(Path(name).read_text(encoding="utf-8")) for name in ("whole.json", "resumed.json")]
    for table in tables:
        for split in table["splits"].values():
            del split["latency"]
    assert tables[0] == tables[1]


def test_a_finished_file_is_read_and_nothing_is_measured(evaluated):
    assert evaluated("--results", FILE).code == 0
    before = Path(FILE).read_bytes()
    done = evaluated("--results", FILE, "--resume")
    assert done.code == 0, done.err
    assert "nothing was measured" in done.out
    assert Path(FILE).read_bytes() == before


def test_killed_at_any_moment_it_goes_on(command, checkpoint, shapes_root, tmp_path):
    """SIGKILL after some lines, twice; what was finished is not repeated."""
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
    whole = command(main, *arguments, "--results", "whole.jsonl")
    assert whole.code == 0, whole.err
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
    stamp = [json.loads(line)["ms"] for line in file.read_text("utf-8").splitlines()[1 : kept + 1]]
    done = command(main, *arguments, "--results", FILE, "--resume")
    assert done.code == 0, done.err
    assert rows(FILE) == rows("whole.jsonl")
    assert stamp == [json.loads(line)["ms"] for line in file.read_text("utf-8").splitlines()[1 : kept + 1]]


OTHER_RUNS = [
    pytest.param(["--convention", "cris"], "convention", id="convention"),
    pytest.param(["--limit", 3], "limit", id="limit"),
    pytest.param(["--shuffle-sentences"], "shuffled_sentences", id="shuffled"),
]


@pytest.mark.parametrize(("more", "named"), OTHER_RUNS)
def test_the_results_of_another_run_are_not_continued(evaluated, more, named):
    assert evaluated("--results", FILE).code == 0
    before = Path(FILE).read_bytes()
    done = evaluated("--results", FILE, "--resume", *more)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"its {named} is" in done.err
    assert Path(FILE).read_bytes() == before


def test_the_results_of_another_engine_are_not_continued(command, checkpoint, other_checkpoint, shapes_root):
    codes, errors = [], ""
    for engine in (checkpoint, other_checkpoint):
        done = command(
            main, "--engine", engine, "--data", shapes_root, "--limit", 1, "--results", FILE, "--resume"
        )
        codes.append(done.code)
        errors += done.err
    assert codes == [0, 2]
    assert "cannot be continued: its engine is" in errors


def test_the_division_is_part_of_the_run(command, small_onnx, gref_root):
    def evaluated(*more):
        common = ("--engine", small_onnx, "--data", gref_root, "--dataset", "refcocog", "--results", FILE)
        return command(main, *common, *more)

    done = evaluated("--json", "umd.json")
    assert done.code == 0, done.err
    assert json.loads(Path("umd.json").read_text(encoding="utf-8"))["split_by"] == "umd"
    umd, text = rows(FILE), Path(FILE).read_text(encoding="utf-8")
    assert read_results(FILE).run["split_by"] == "umd"
    refused = evaluated("--resume", "--split-by", "google")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert 'its split_by is "umd", of this run it is "google"' in refused.err
    # A file of before the division was noted.
    Path(FILE).write_text(text.replace(' "split_by": "umd",', "", 1), encoding="utf-8")
    assert "split_by" not in json.loads(Path(FILE).read_text(encoding="utf-8").splitlines()[0])["run"]
    assert evaluated("--resume", "--split-by", "google").code == 2
    for more in ([], ["--split-by", "umd"]):
        assert evaluated("--resume", *more).code == 0
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


def test_mistakes_with_results(evaluated, command):
    done = command(main, "--resume")
    assert (done.code, "--results" in done.err) == (2, True)
    Path(FILE).write_text("something else\n", encoding="utf-8")
    for more, named in (([], "exists"), (["--resume"], "no results file")):
        done = evaluated("--results", FILE, *more)
        assert (done.code, named in done.err) == (2, True)
    assert Path(FILE).read_text(encoding="utf-8") == "something else\n"


def test_a_damaged_line_is_named(evaluated):
    assert evaluated("--results", FILE).code == 0
    lines = Path(FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    Path(FILE).write_text("".join([*lines[:3], "{}\n", *lines[4:]]), encoding="utf-8")
    with pytest.raises(UserError, match="line 4 is damaged"):
        read_results(FILE)
    Path(FILE).write_text("".join(lines)[: -os.linesep.__len__()], encoding="utf-8")
    with pytest.raises(UserError, match="--resume"):
        read_results(FILE)
