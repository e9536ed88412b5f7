"""The scans' benchmark: every formulation computes what the oracle does, it times them, it reports."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from tfanet.errors import UserError, VerificationError
from tfanet.ops.cross_selective_scan import cross_selective_scan_loop
from tfanet.ops.selective_scan import selective_scan_loop
from tfanet_export.functions import CROSS_SCAN, SCAN

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
formulations, report, scan_measure, scan_cpu = map(
    importlib.import_module,
    ("formulations", "report", "scan_measure", "scan_cpu"),
)
Shape, Formulation, Measurement = scan_measure.Shape, scan_measure.Formulation, scan_measure.Measurement

ORACLES = {SCAN: selective_scan_loop, CROSS_SCAN: cross_selective_scan_loop}
SHAPES = [
    pytest.param(Shape(1, 3), id="one-token"),
    pytest.param(Shape(17, 2), id="17-tokens"),
    pytest.param(Shape(63, 3, states=4), id="63-tokens-4-states"),
    pytest.param(Shape(225, 2), id="225-tokens"),
]


def named(keys):
    return [pytest.param(*key, id="-".join(" ".join(key).replace(",", "").split())) for key in keys]


def make_case(operation, shape):
    """Inputs and the oracle's result in FP64."""
    values = scan_measure.make_inputs(operation, shape)
    expected = ORACLES[operation](*(torch.from_numpy(value).double() for value in values.values()))
    return values, expected.numpy()


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("operation", "name"), named(formulations.TORCH))
def test_formulations_in_pytorch_equal_the_oracle(operation, name, shape):
    values, expected = make_case(operation, shape)
    actual = formulations.TORCH[operation, name](*map(torch.from_numpy, values.values()))
    assert_close(actual.numpy(), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("operation", "name"), named(formulations.onnx_formulations(states=1, length=1)))
def test_formulations_in_onnx_equal_the_oracle(tmp_path, operation, name, shape):
    values, expected = make_case(operation, shape)
    functions = formulations.onnx_formulations(states=shape.states, length=shape.length)[operation, name]
    proto = scan_measure.one_node(operation, functions, values)
    assert_close(run_onnx(tmp_path, proto, values, native=name == scan_measure.SHIPS), expected)


def run_onnx(folder, proto, values, *, native=False):
    onnx.save(proto, folder / "one.onnx")
    session = scan_measure.open_session(folder / "one.onnx", 1, native=native)
    return session.run(None, {entry.name: values[entry.name] for entry in session.get_inputs()})[0]


@pytest.mark.parametrize(
    ("length", "expected"), [(1, (1, 1)), (17, (1, 17)), (384, (16, 24)), (14400, (120, 120))]
)
def test_maps_are_as_square_as_their_length_allows(length, expected):
    assert Shape(length, 1).map == expected


# The scan benchmark.


@pytest.fixture
def one_process(monkeypatch):
    """Formulations run in this process, which knows PyTorch already."""
    monkeypatch.setattr(scan_cpu, "in_own_process", lambda function, *args: function(*args))


def test_scan_benchmark_writes_every_formulation(one_process, tmp_path):
    arguments = ["--shapes", "4:2,6:3", "--threads", "1", "--repeats", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(scan_cpu.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    (markdown,), (figures,) = tmp_path.glob("scan_cpu-*.md"), tmp_path.glob("scan_cpu-*.json")
    content = json.loads(figures.read_text())
    keys = {(r["operation"], r["runtime"], r["name"], r["tokens"], r["channels"]) for r in content["results"]}
    in_onnx = formulations.onnx_formulations(states=1, length=6)
    assert keys == {
        (operation, runtime, name, tokens, channels)
        for runtime, known in (("PyTorch", formulations.TORCH), ("ONNX Runtime", in_onnx))
        for operation, name in known
        for tokens, channels in ((4, 2), (6, 3))
    }
    for entry in content["results"]:
        assert len(entry["seconds"]) == 2
        assert entry["median"] > 0
        assert entry["error"] <= scan_measure.TOLERANCE
        assert entry["times_as_fast_as_rival"] > 0
    assert content["about"]["threads"] == 1
    text = markdown.read_text()
    for operation, _, name, _, _ in keys:
        assert f"| {name} |" in text
        assert f"## {operation}: ms" in text
        assert f"## {operation}: peak memory, MB" in text
        assert name in result.output


def test_scan_benchmark_as_typed(tmp_path):
    command = ["benchmarks/scan_cpu.py", "--shapes", "4:2", "--only", "row positions", "--out", str(tmp_path)]
    done = run_script(*command, "--threads", "1", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    (figures,) = tmp_path.glob("*.json")
    results = json.loads(figures.read_text())["results"]
    assert {entry["runtime"] for entry in results} == {"PyTorch", "ONNX Runtime"}
    assert {entry["times_as_fast_as_rival"] for entry in results} == {None}


def run_script(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=BENCHMARKS.parent, env=environment, capture_output=True, text=True
    )


def test_a_formulation_that_is_off_is_not_timed(one_process, monkeypatch):
    shipped = formulations.TORCH[SCAN, "ships"]
    monkeypatch.setitem(formulations.TORCH, (SCAN, "ships"), lambda *args: 1.001 * shipped(*args))
    with pytest.raises(VerificationError, match=r"PyTorch, SelectiveScan, 'ships' at 9 tokens is off by 1"):
        scan_cpu.measure_all([Shape(9, 2)], 1, 1, 20.0, "ships")


def test_a_killed_process_is_reported_and_the_rest_goes_on(monkeypatch):
    known = [Formulation(SCAN, "PyTorch", name) for name in ("doubling in rows", "ships")]

    def in_own_process(function, *args):
        if function is scan_cpu.prepare:
            return known
        if args[0].formulation == known[0]:
            raise BrokenProcessPool
        return Measurement([0.25], 3_000_000, 1e-7)

    monkeypatch.setattr(scan_cpu, "in_own_process", in_own_process)
    shape = Shape(9, 2)
    results = scan_cpu.measure_all([shape], 1, 1, 20.0, "")
    times, peaks = scan_cpu.make_tables(results, [shape])
    assert [row[2] for row in times.rows] == ["killed", "250.0"]
    assert [row[2] for row in peaks.rows] == ["killed", "3"]
    (line,) = scan_cpu.exceptions(results, 1)
    assert line.startswith("SelectiveScan in PyTorch, 'doubling in rows', 9 tokens: the process was killed")
    assert scan_cpu.records(results)[0]["killed"] is True


def test_a_process_of_its_own():
    assert scan_cpu.in_own_process(os.getpid) != os.getpid()
    with pytest.raises(BrokenProcessPool):
        scan_cpu.in_own_process(os._exit, 1)


@pytest.mark.parametrize(
    ("ships", "other", "expected"),
    [
        ((1.0, 1.0), (2.0, 3.0), "what ships is the fastest at 9, 16 tokens"),
        ((1.0, 4.0), (2.0, 2.0),
         "what ships is the fastest at 9 tokens; at 16 tokens 'other' is 2.00 times as fast"),
        ((4.0,), (1.0,), "at 9 tokens 'other' is 4.00 times as fast"),
    ],
    ids=["always", "sometimes", "never"],
)  # fmt: skip
def test_verdicts_name_what_is_faster(ships, other, expected):
    shapes = [Shape(9, 1), Shape(16, 1)]
    results = {
        (Formulation(SCAN, "PyTorch", name), shape): Measurement([seconds])
        for name, times in (("ships", ships), ("other", other))
        for shape, seconds in zip(shapes, times, strict=False)
    }
    assert scan_cpu.verdicts(results, shapes) == [f"SelectiveScan in PyTorch: {expected}"]


def test_the_ratio_is_of_medians():
    shape, rival = Shape(9, 1), Formulation(CROSS_SCAN, "PyTorch", "copies, doubling in rows")
    ships = Formulation(CROSS_SCAN, "PyTorch", "ships")
    results = {(rival, shape): Measurement([3.0, 9.0, 2.0]), (ships, shape): Measurement([2.0, 1.0, 8.0])}
    assert scan_cpu.ratio(results, ships, shape) == 1.5
    assert scan_cpu.ratio(results, Formulation(CROSS_SCAN, "PyTorch", "gone"), shape) is None
    times, _ = scan_cpu.make_tables(results, [shape])
    assert [row[2] for row in times.rows] == ["3000.0 (1.00)", "2000.0 (1.50)"]


@pytest.mark.parametrize("text", ["225", "225:", "0:4", "9:-1", "a:b", "9:2,,4:2"])
def test_malformed_shapes_are_refused(text):
    with pytest.raises(UserError, match="--shapes takes LENGTH:CHANNELS"):
        scan_cpu.parse_shapes(text)


def test_an_unknown_formulation_is_refused(one_process):
    with pytest.raises(UserError, match="no formulation has 'fastest' in its name"):
        scan_cpu.measure_all([Shape(4, 2)], 1, 1, 20.0, "fastest")


# What both share.


@pytest.mark.parametrize("threads", [0, -2])
def test_no_threads_are_refused(threads):
    with pytest.raises(UserError, match=f"--threads must be at least 1, not {threads}"):
        report.check_threads(threads)


def test_threads_are_one_a_usable_core_by_default():
    assert report.check_threads(None) == report.usable_cores() >= 1
    assert report.check_threads(3) == 3


def test_a_report_of_the_same_day_is_replaced(tmp_path):
    table = report.Table("Lengths", ("what", "m"), [("rod", "1.0")])
    about = report.machine(2)
    for value in ("old", "new"):
        paths = report.write("toy", tmp_path, about, [table], [f"a {value} note"], {"value": value})
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert [path.suffix for path in paths] == [".md", ".json"]
    text = paths[0].read_text()
    assert text.startswith("# toy\n\n- date: 20")
    assert "## Lengths\n\n| what | m |\n| --- | ---: |\n| rod | 1.0 |\n" in text
    assert text.endswith("- a new note\n")
    assert json.loads(paths[1].read_text()) == {"about": about, "results": {"value": "new"}}


@pytest.mark.parametrize("module", ["scan_cpu", "model_cpu"])
def test_help_imports_nothing_heavy(module):
    heavy = ("torch", "onnx", "onnxruntime", "open_clip")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_files_are_at_most_400_lines():
    assert all(len(path.read_text().splitlines()) <= 400 for path in BENCHMARKS.glob("*.py"))
