"""Reports, shared options and failures of the benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import options
import pytest
import report
import torch

from tfanet.errors import UserError

BENCHMARKS = Path(report.__file__).parent


def test_report_of_the_same_day_is_replaced(tmp_path):
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


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda *a, **k: SimpleNamespace(stdout="580.1\n580.1\n"), "580.1"),
        (lambda *a, **k: SimpleNamespace(stdout=""), "unknown"),
        (lambda *a, **k: Path("/no/such/program").read_text(), "unknown"),
    ],
    ids=["two-gpus", "no-output", "not-installed"],
)
def test_about_gpu_has_device_driver_and_versions(monkeypatch, run, expected):
    device = SimpleNamespace(
        name="Toy", major=9, minor=0, multi_processor_count=132, total_memory=2**37, L2_cache_size=60 * 2**20
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(subprocess, "run", run)
    about = report.about_gpu()
    assert about["driver"] == expected
    assert about["GPU"] == (
        "Toy, compute capability 9.0, 132 multiprocessors, 128 GiB, 60 MiB of second-level cache"
    )
    assert {name.partition(" ")[0] for name in about["GPU packages"].split(", ")} == {"triton", "mamba_ssm"}


def test_triton_errors_are_failures():
    errors = pytest.importorskip("triton.errors")
    assert errors.TritonError in report.failures()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (report.NotAvailable("not built"), "not built"),
        (RuntimeError("no kernel image\nand more"), "RuntimeError: no kernel image"),
        (OSError(), "OSError"),
    ],
    ids=["not-available", "first-line", "no-message"],
)
def test_reason_is_one_line(error, expected):
    assert report.reason(error) == expected


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_below_1_are_rejected(threads):
    with pytest.raises(UserError, match=f"--threads must be at least 1, not {threads}"):
        options.check_threads(threads)


def test_default_is_one_thread_per_usable_core():
    assert options.check_threads(None) == options.usable_cores() >= 1
    assert options.check_threads(3) == 3


@pytest.mark.parametrize("text", ["225", "225:", "0:4", "9:-1", "a:b", "9:2,,4:2"])
def test_malformed_shapes_are_rejected(text):
    with pytest.raises(UserError, match="--shapes takes LENGTH:CHANNELS"):
        options.parse_shapes(text)


@pytest.mark.parametrize(
    ("length", "expected"), [(1, (1, 1)), (17, (1, 17)), (384, (16, 24)), (14400, (120, 120))]
)
def test_maps_are_as_square_as_their_length_allows(length, expected):
    assert options.Shape(length, 1).map == expected


@pytest.mark.parametrize(
    "module",
    ["engines_gpu", "evaluation_cost", "loader_cpu", "model_cpu", "scan_cpu", "scan_gpu", "training_gpu"],
)
def test_help_imports_nothing_heavy(module):
    heavy = ("torch", "triton", "onnx", "onnxruntime", "open_clip")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
