"""The benchmark's table: measured engines, engines that fail or crash, and floors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_engines
import pytest

from tfanet_eval import benchmark
from tfanet_eval.benchmark import Row, parse_floors, values_below
from tfanet_eval.cli.benchmark import main
from tfanet_eval.jobs import EvaluationJob

pytestmark = pytest.mark.integration

JOB = EvaluationJob(Path("none.onnx"), None, Path("none"), "refcoco", ("val",))


def test_crash_or_error_of_a_process_becomes_the_status():
    assert benchmark._in_subprocess(fake_engines.crashes, JOB) == (
        "failed: its process ended with exit code 7 and without a result",
        {},
    )
    assert benchmark._in_subprocess(fake_engines.raises, JOB) == (
        "failed: this machine has no such GPU",
        {},
    )


def test_value_below_its_floor_or_missing_is_reported():
    rows = [
        Row("a.onnx", "ok", {"oIoU": 0.7}),
        Row("b.onnx", "ok", {"oIoU": 0.65}),
        Row("c.plan", "failed", {}),
    ]
    assert values_below(rows, parse_floors(["oIoU=0.70"])) == [
        "oIoU of b.onnx is 0.65, below the floor of 0.7",
        "oIoU of c.plan was not measured, its floor is 0.7",
    ]


@pytest.mark.parametrize("text", ["oIoU", "oIoU=high", "IoU=0.7"])
def test_invalid_floor_is_an_error(command, text):
    done = command(main, "--floor", text)
    assert (done.code, f"--floor {text}" in done.err) == (2, True)


def test_every_engine_has_a_row(command, checkpoint, other_checkpoint, exported, shapes_root, tmp_path):
    broken = tmp_path / "broken.plan"
    broken.write_bytes(b"no plan")
    common = ("--reference", checkpoint, "--data", shapes_root, "--limit", 3, "--json", "table.json")
    done = command(main, exported["fp32"].path, other_checkpoint, broken, *common, "--floor", "oIoU=1.0")
    assert done.code == 1
    content = json.loads(Path("table.json").read_text(encoding="utf-8"))
    assert set(content) == {"title", "rows", "environment"}
    assert set(content["environment"]) == {"versions", "cpu", "gpu", "processes"}
    eager, onnx, other, plan = content["rows"]
    columns = {
        "engine", "status", "MB", "mIoU", "oIoU", "max logit error", "mask agreement", "ms per image",
        "p95 ms", "images/s", "speedup", "peak MB",
    }  # fmt: skip
    assert all(set(row) == columns for row in (eager, onnx, other, plan))
    assert (eager["status"], eager["speedup"]) == ("ok", 1)
    assert (onnx["status"], onnx["mIoU"], onnx["oIoU"]) == ("ok", eager["mIoU"], eager["oIoU"])
    assert onnx["max logit error"] < 1e-3
    assert other["status"].startswith("failed: max logit error")
    assert other["speedup"] == pytest.approx(other["images/s"] / eager["images/s"])
    assert 0 < other["ms per image"] <= other["p95 ms"]
    assert 50e6 < eager["peak MB"] < 4e9
    assert plan["status"].startswith("failed: ")
    assert (plan["MB"], plan["mIoU"]) == (7, None)
    assert f"oIoU of {checkpoint.name} is" in done.out
    assert "oIoU of broken.plan was not measured" in done.out


def test_split_by_selects_the_refs_file(command, monkeypatch, checkpoint, gref_root):
    jobs = []
    monkeypatch.setattr(benchmark, "benchmark", lambda received: jobs.extend(received) or [])
    common = ("--reference", checkpoint, "--data", gref_root, "--dataset", "refcocog", "--json", "table.json")
    assert command(main, checkpoint, *common, "--split-by", "google").code == 0
    assert [job.split_by for job in jobs] == ["google", "google"]
    title = json.loads(Path("table.json").read_text(encoding="utf-8"))["title"]
    assert title.startswith("refcocog (google) val, calls of 1; ")
    assert command(main, checkpoint, *common, "--split-by", "unc").code == 2


def test_peak_memory_is_that_of_the_process_alone():
    """Unlike getrusage, whose peak in a subprocess starts at that of its parent."""
    memory = bytearray(os.urandom(1) * 600_000_000)
    code = "from tfanet.console import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1e6 < int(done.stdout) < len(memory) / 2
