"""`scan_cpu.py`: every implementation equals the oracle, is timed and reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scan_cpu
import scan_measure
import torch
from options import Shape
from scan_measure import Row
from typer.testing import CliRunner

from tfanet.errors import VerificationError
from tfanet.ops import native
from tfanet.ops.cross_selective_scan import cross_selective_scan_loop
from tfanet.ops.selective_scan import selective_scan_loop
from tfanet_plugins.operations import CROSS_SCAN, SCAN

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
ORACLES = {SCAN: selective_scan_loop, CROSS_SCAN: cross_selective_scan_loop}
BASELINES = {("PyTorch", "vectorised"), ("ONNX Runtime", "function body")}
COMPILED = {
    SCAN: {("PyTorch", "compiled")},
    CROSS_SCAN: {("PyTorch", "compiled"), ("ONNX Runtime", "compiled")},
}
SHAPES = [
    pytest.param(Shape(1, 3), id="one-token"),
    pytest.param(Shape(17, 2), id="17-tokens"),
    pytest.param(Shape(63, 3, states=4), id="63-tokens-4-states"),
    pytest.param(Shape(225, 2), id="225-tokens"),
]


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operation", [SCAN, CROSS_SCAN])
def test_implementations_equal_the_oracle(tmp_path, operation, shape):
    inputs = scan_measure.make_inputs(operation, shape)
    expected = ORACLES[operation](*(x.double() for x in inputs.values())).numpy()
    calls = scan_measure.implementations(operation, inputs, 1, tmp_path)
    assert set(calls) == BASELINES | (COMPILED[operation] if native.library() else set())
    for call in calls.values():
        actual = call()
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= 5e-6 * np.abs(expected).max()


def test_without_the_compiled_library_only_baselines_run(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    inputs = scan_measure.make_inputs(CROSS_SCAN, Shape(6, 2))
    assert set(scan_measure.implementations(CROSS_SCAN, inputs, 1, tmp_path)) == BASELINES


def test_a_wrong_implementation_is_not_timed(monkeypatch):
    function, oracle = scan_measure._FUNCTIONS[SCAN]
    wrong = (lambda *inputs: 1.001 * function(*inputs), oracle)
    monkeypatch.setitem(scan_measure._FUNCTIONS, SCAN, wrong)
    monkeypatch.setattr(scan_measure, "in_turns", lambda *arguments: pytest.fail("timed"))
    with pytest.raises(
        VerificationError, match=r"SelectiveScan, PyTorch, vectorised: relative error 1.0e-03"
    ):
        scan_measure.measure(Shape(9, 2), 1, 1)


def test_report_has_every_implementation(tmp_path):
    arguments = ["--shapes", "4:2,6:3", "--threads", "1", "--repeats", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(scan_cpu.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    (markdown,), (path,) = tmp_path.glob("scan_cpu-*.md"), tmp_path.glob("scan_cpu-*.json")
    content = json.loads(path.read_text())
    keys = {(r["operation"], r["runtime"], r["name"], r["tokens"], r["channels"]) for r in content["results"]}
    assert keys == {
        (operation, *key, *shape)
        for operation, compiled in COMPILED.items()
        for key in BASELINES | (compiled if native.library() else set())
        for shape in ((4, 2), (6, 3))
    }
    for row in content["results"]:
        assert len(row["seconds"]) == 2
        assert row["median"] > 0
        assert row["error"] <= scan_measure.TOLERANCE
        assert row["times_as_fast_as_rival"] > 0
    assert content["about"]["threads"] == 1
    text = markdown.read_text()
    for operation, runtime, name, _, _ in keys:
        assert f"| {runtime} | {name} |" in text
        assert f"## {operation}: ms" in text
        assert name in result.output


def test_script_runs(tmp_path):
    command = [
        sys.executable,
        "benchmarks/scan_cpu.py",
        "--shapes",
        "4:2",
        "--threads",
        "1",
        "--repeats",
        "1",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["results"]
    assert {row["runtime"] for row in rows} == {"PyTorch", "ONNX Runtime"}


def test_speedups_are_of_medians_over_the_baseline_of_the_runtime():
    rows = [
        Row(CROSS_SCAN, "PyTorch", "vectorised", 9, 1, [3.0, 9.0, 2.0], 0.0),
        Row(CROSS_SCAN, "PyTorch", "compiled", 9, 1, [2.0, 1.0, 8.0], 0.0),
        Row(CROSS_SCAN, "ONNX Runtime", "compiled", 9, 1, [1.0], 0.0),
    ]
    assert [scan_cpu.speedup(rows, row) for row in rows] == [1.0, 1.5, None]
    (table,) = scan_cpu.make_tables(rows, [Shape(9, 1)])
    assert [row[2] for row in table.rows] == ["3000.0 (1.00)", "2000.0 (1.50)", "1000.0 (–)"]
