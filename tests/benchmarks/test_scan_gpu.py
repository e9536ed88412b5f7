"""What the GPU's benchmark reports and refuses, on the CPU with the operations as kernels."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu_setup import BENCHMARKS, KERNELS, SMALL, gpu_cases, gpu_measure, host_timer, scan_measure
from typer.testing import CliRunner

import tfanet.ops as ops
from tfanet.errors import UserError, VerificationError

gpu_report, scan_gpu = map(importlib.import_module, ("gpu_report", "scan_gpu"))
Shape, Row, Timing = scan_measure.Shape, gpu_measure.Row, gpu_measure.Timing
CPU = torch.device("cpu")


def plan(**changes):
    values = {
        "shapes": [Shape(12, 3), Shape(9, 2)],
        "batches": [1, 2],
        "dtypes": ["FP16"],
        "sections": list(scan_gpu.SECTIONS),
        "repeats": 3,
        "limit": 1.0,
        "compile_limit": 5.0,
        "preset": "tiny",
    }
    return scan_gpu.Plan(**values | changes)


@pytest.fixture
def small_copy(monkeypatch):
    monkeypatch.setattr(gpu_measure.copy_bandwidth, "__defaults__", (4096,))


def run_report(tmp_path, kernels=KERNELS, timer=host_timer, **changes):
    about = {"date": "2030-01-02 03:04 UTC", "GPU": "none"}
    scan_gpu.report_on(plan(**changes), CPU, kernels, timer, about, tmp_path)


def test_the_benchmark_writes_every_figure(small_copy, monkeypatch, tmp_path, capsys):
    def within(seconds, function, shape, batch, *others):
        assert (seconds, function) == (5.0, gpu_cases.measure_compiled)
        if shape.length == 9:
            raise TimeoutError
        return Row("scan", "12 x 3", batch, "FP16", gpu_cases.COMPILED, seconds=[0.5], error=0.0)

    monkeypatch.setattr(gpu_measure, "within", within)
    run_report(tmp_path)
    content = json.loads((tmp_path / "scan-gpu-2030-01-02.json").read_text())
    text = (tmp_path / "scan-gpu-2030-01-02.md").read_text()
    printed = capsys.readouterr().out
    rows = content["results"]["rows"]
    assert content["about"]["GPU"] == "none"
    assert content["about"]["copy bandwidth, GB/s"] > 0
    sizes = {name: {row["size"] for row in rows if row["section"] == name} for name in scan_gpu.SECTIONS}
    maps = {"12 x 3", "9 x 2"}
    assert sizes == {
        "scan": maps, "backward": maps, "cross": maps,
        "attention": {"12 queries, 17 keys", "17 queries, 12 keys"}, "model": {"96 x 96"},
    }  # fmt: skip
    assert {(r["batch"], r["dtype"]) for r in rows if r["section"] == "model"} == {
        (1, "FP16"), (1, "FP32"), (2, "FP16"), (2, "FP32"),
    }  # fmt: skip
    for row in rows:
        assert (row["why"] == "") == bool(row["seconds"])
        if row["ours"]:
            assert row["median"] > 0
            assert (row["share_of_copy"] is None) == (row["section"] == "model")
    compiled = [(r["size"], r["batch"], r["why"]) for r in rows if r["name"] == gpu_cases.COMPILED]
    assert compiled == [
        ("12 x 3", 1, ""), ("12 x 3", 2, ""), ("9 x 2", 1, "over 5 s"),
        ("9 x 2", 2, "not tried: smaller batch over the limit"),
    ]  # fmt: skip
    for title in (*gpu_report.TITLES.values(), "Goals"):
        assert f"## {title}" in text
        assert title in printed
    assert "| fused / unfused chain | 12 x 3 | 2 | FP16 |" in text
    assert f"{gpu_cases.COMPILED}: over the limit, so of 1 runs only" not in text
    assert "scan, vectorised, torch.compile, 12 x 3, batch 1, FP16: over the limit, so of 1 runs only" in text


def test_a_wrong_kernel_ends_the_benchmark_after_its_report(small_copy, tmp_path):
    wrong = KERNELS._replace(cross=lambda *inputs: 1.01 * ops.cross_selective_scan(*inputs))
    with pytest.raises(
        VerificationError, match=r"^2 of our figures .* cross, 12 x 3, batch 1, FP16: wrong by"
    ):
        run_report(tmp_path, wrong, sections=["cross", "attention"], batches=[1])
    rows = json.loads((tmp_path / "scan-gpu-2030-01-02.json").read_text())["results"]["rows"]
    assert {row["section"] for row in rows if row["seconds"]} == {"cross", "attention"}


def test_what_was_measured_is_kept_when_a_later_section_ends_the_program(small_copy, tmp_path):
    def interrupted(*inputs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_report(tmp_path, KERNELS._replace(attention=interrupted), sections=["cross", "attention"])
    rows = json.loads((tmp_path / "scan-gpu-2030-01-02.json").read_text())["results"]["rows"]
    assert {row["section"] for row in rows} == {"cross"}


def test_a_failed_process_of_the_compiler_is_a_row(monkeypatch):
    def within(*arguments):
        raise EOFError

    monkeypatch.setattr(gpu_measure, "within", within)
    rows = scan_gpu.compiled_rows(plan(shapes=[SMALL], batches=[4]), CPU)
    assert [(row.batch, row.why) for row in rows] == [(4, "its process ended early")]


def timed(section, name, milliseconds, *, size="14400 x 256", batch=1, **others):
    return Row(section, size, batch, "FP16", name, seconds=[1e-3 * m for m in milliseconds], **others)


def test_tables_give_ratios_to_ours_and_shares_of_the_copy():
    rows = [
        timed("scan", gpu_cases.TRITON, [1, 9, 2], ours=True, moved_bytes=6_000_000, error=1e-6),
        timed("scan", gpu_cases.MAMBA, [5], moved_bytes=4_000_000, host_bound=True),
        timed("scan", gpu_cases.OFLEX, [], why="not | built, and this is said in very many words indeed"),
    ]
    ours, mamba, oflex = gpu_report.section_table("scan", rows, 4e9).rows
    assert ours[3:] == [gpu_cases.TRITON, "2.0000", "–", "6.0", "3", "75.0", "1.0e-06"]
    assert mamba[3:] == [gpu_cases.MAMBA, "5.0000*", "2.50", "4.0", "1", "20.0", "–"]
    assert oflex[4:] == ["not / built, and this is said in very man...", "–", "–", "–", "–", "–"]


def test_the_model_is_timed_by_the_picture():
    rows = [
        timed("model", gpu_cases.OUR_KERNELS, [20], batch=8, ours=True, error=0.0),
        timed("model", gpu_cases.VECTORISED, [64], batch=8, error=0.0),
    ]
    table = gpu_report.section_table("model", rows, 4e9)
    assert table.columns[4] == "ms a picture"
    assert [row[4:6] for row in table.rows] == [["2.5000", "–"], ["8.0000", "3.20"]]


@pytest.mark.parametrize(
    ("section", "ours", "other", "rows", "expected"),
    [
        ("scan", gpu_cases.TRITON, gpu_cases.MAMBA, [(2, 3)], ["85.0%", "met", "1.50", "met"]),
        ("scan", gpu_cases.TRITON, gpu_cases.MAMBA, [(2.5, 3)], ["68.0%", "not met", "1.20", "not met"]),
        ("scan", gpu_cases.TRITON, gpu_cases.MAMBA, [(2, None)], ["85.0%", "met", "–", "no figure"]),
        ("cross", gpu_cases.FUSED, gpu_cases.UNFUSED, [(1, 2), (1, 1.9)], ["2.00", "met", "1.90", "not met"]),
        ("model", gpu_cases.OUR_KERNELS, gpu_cases.VECTORISED, [(None, 2)], ["–", "no figure"]),
        ("attention", gpu_cases.TRITON, gpu_cases.VECTORISED, [(1, 2)], []),
    ],
    ids=["met", "not-met", "no-rival", "fused", "ours-failed", "no-goal"],
)
def test_goals(section, ours, other, rows, expected):
    found = []
    for batch, (mine, theirs) in enumerate(rows, start=1):
        for name, milliseconds in ((ours, mine), (other, theirs)):
            times = [] if milliseconds is None else [milliseconds]
            found.append(timed(section, name, times, batch=batch, moved_bytes=6_800_000, ours=name == ours))
    cells = [cell for row in gpu_report.goals_table(found, 4e9).rows for cell in (row[4], row[6])]
    assert cells == expected


def test_the_bandwidth_goal_is_for_one_size_and_fp16():
    rows = [timed("scan", gpu_cases.TRITON, [2], size="225 x 2048", ours=True, moved_bytes=1)]
    assert [row[0] for row in gpu_report.goals_table(rows, 4e9).rows] == ["our scan / mamba_ssm"]
    wide = [Row("scan", "14400 x 256", 1, "FP32", gpu_cases.TRITON, seconds=[1.0], moved_bytes=1)]
    assert gpu_report.goals_table(wide, 4e9).rows == []


def test_json_has_no_nan():
    (record,) = gpu_report.records([Row("scan", "1 x 1", 1, "FP16", "odd", error=float("nan"), why="w")], 1.0)
    assert (record["error"], record["median"], record["why"]) == (None, None, "w")


# The command.


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "scan,sort"], "--only takes scan, backward, cross, attention, model"),
        (["--batches", "1,0"], "--batches takes whole numbers above 0"),
        (["--batches", "many"], "--batches takes whole numbers above 0"),
        (["--shapes", "9"], "--shapes takes LENGTH:CHANNELS"),
        (["--preset", "huge"], "unknown preset 'huge'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_impossible_options_are_refused(tmp_path, arguments, reason):
    with pytest.raises(UserError, match=reason):
        CliRunner().invoke(
            scan_gpu.app, [*arguments, "--out", str(tmp_path)], catch_exceptions=False, standalone_mode=False
        )


@pytest.mark.parametrize(
    ("cuda", "absent", "reason"),
    [
        (False, "", "no CUDA device here"),
        (True, "triton", "Triton is not installed"),
        (True, "open_clip", "pip install open_clip_torch, or --only scan,backward,cross,attention$"),
    ],
    ids=["cuda", "triton", "open_clip"],
)
def test_what_is_missing_is_said_before_the_work(monkeypatch, cuda, absent, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(scan_gpu, "find_spec", lambda name: None if name == absent else object())
    with pytest.raises(UserError, match=reason):
        scan_gpu.require_gpu(["scan", "model"])
    if absent == "open_clip":
        scan_gpu.require_gpu(["scan"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_the_command_ends_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "scan_gpu.py", "--out", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: no CUDA device here; benchmarks/scan_cpu.py times the scans on a CPU"
    ]
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy():
    code = "import sys, scan_gpu; print([n for n in ('torch', 'triton', 'onnx') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda *a, **k: SimpleNamespace(stdout="580.1\n580.1\n"), "580.1"),
        (lambda *a, **k: SimpleNamespace(stdout=""), "unknown"),
        (lambda *a, **k: Path("/no/such/program").read_text(), "unknown"),
    ],
    ids=["two-gpus", "silent", "no-program"],
)
def test_the_head_names_gpu_driver_and_versions(monkeypatch, run, expected):
    device = SimpleNamespace(
        name="Toy", major=9, minor=0, multi_processor_count=132, total_memory=2**37, L2_cache_size=60 * 2**20
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(subprocess, "run", run)
    about = gpu_measure.about_gpu()
    assert about["driver"] == expected
    assert about["GPU"] == (
        "Toy, compute capability 9.0, 132 multiprocessors, 128 GiB, 60 MiB of second-level cache"
    )
    assert {name.partition(" ")[0] for name in about["GPU packages"].split(", ")} == {"triton", "mamba_ssm"}


@pytest.mark.gpu
def test_the_benchmark_as_typed_on_a_gpu(tmp_path):
    command = [BENCHMARKS / "scan_gpu.py", "--shapes", "225:64,900:32", "--batches", "1,2", "--fp32"]
    command += ["--preset", "tiny", "--repeats", "5", "--compile-limit", "0", "--out", tmp_path]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (figures,) = tmp_path.glob("scan-gpu-*.json")
    rows = json.loads(figures.read_text())["results"]["rows"]
    assert {row["section"] for row in rows if row["ours"] and row["seconds"]} == set(scan_gpu.SECTIONS)
