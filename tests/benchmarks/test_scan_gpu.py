"""`scan_gpu.py` and its report on the CPU, with our operations as kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gpu_cases
import gpu_report
import pytest
import scan_gpu
import timing
import torch
from gpu_measure import Row
from gpu_setup import KERNELS, SMALL, host_timer
from options import Shape
from typer.testing import CliRunner

import tfanet.ops as ops
from tfanet.errors import UserError, VerificationError

pytestmark = pytest.mark.integration

SCRIPT = Path(scan_gpu.__file__)
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
    monkeypatch.setattr(timing.copy_bandwidth, "__defaults__", (4096,))


def run_report(tmp_path, kernels=KERNELS, timer=host_timer, **changes):
    about = {"date": "2030-01-02 03:04 UTC", "GPU": "none"}
    scan_gpu.report_on(plan(**changes), CPU, kernels, timer, about, tmp_path)


def test_report_has_every_measurement(small_copy, monkeypatch, tmp_path, capsys):
    def run_in_subprocess(function, job, *, timeout, name):
        assert (timeout, function) == (5.0, gpu_cases.measure_compiled)
        if job.shape.length == 9:
            raise VerificationError(f"{name} was stopped after 5 s")
        return Row("scan", "12 x 3", job.batch, "FP16", gpu_cases.COMPILED, seconds=[0.5], error=0.0)

    monkeypatch.setattr("tfanet.subprocesses.run_in_subprocess", run_in_subprocess)
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
        ("12 x 3", 1, ""), ("12 x 3", 2, ""), ("9 x 2", 1, "torch.compile was stopped after 5 s"),
        ("9 x 2", 2, "not tried: a smaller batch failed"),
    ]  # fmt: skip
    for title in (*gpu_report.TITLES.values(), "Goals"):
        assert f"## {title}" in text
        assert title in printed
    assert "| fused / unfused chain | 12 x 3 | 2 | FP16 |" in text
    few = [line for line in text.splitlines() if "only 1 runs within the time limit" in line]
    assert [line.lstrip("- ") for line in few if gpu_cases.COMPILED in line] == [
        f"scan, {gpu_cases.COMPILED}, 12 x 3, batch {batch}, FP16: only 1 runs within the time limit"
        for batch in (1, 2)
    ]


def test_a_wrong_kernel_fails_the_benchmark_after_the_report(small_copy, tmp_path):
    wrong = KERNELS._replace(cross=lambda *inputs: 1.01 * ops.cross_selective_scan(*inputs))
    with pytest.raises(
        VerificationError,
        match=r"^2 measurements of our kernels failed.* cross, 12 x 3, batch 1, FP16: relative error",
    ):
        run_report(tmp_path, wrong, sections=["cross", "attention"], batches=[1])
    rows = json.loads((tmp_path / "scan-gpu-2030-01-02.json").read_text())["results"]["rows"]
    assert {row["section"] for row in rows if row["seconds"]} == {"cross", "attention"}


def test_report_is_kept_when_a_later_section_is_interrupted(small_copy, tmp_path):
    def interrupted(*inputs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_report(tmp_path, KERNELS._replace(attention=interrupted), sections=["cross", "attention"])
    rows = json.loads((tmp_path / "scan-gpu-2030-01-02.json").read_text())["results"]["rows"]
    assert {row["section"] for row in rows} == {"cross"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the subprocess would not fail")
def test_a_failed_compile_subprocess_is_a_row():
    """On a machine without CUDA the subprocess fails when it makes its timer."""
    rows = scan_gpu.compiled_rows(plan(shapes=[SMALL], batches=[4, 8], compile_limit=120.0), CPU)
    assert [row.batch for row in rows] == [4, 8]
    assert rows[0].why.startswith("torch.compile ended with exit code 1 and without a result: ")
    assert "NVIDIA" in rows[0].why or "CUDA" in rows[0].why
    assert rows[1].why == "not tried: a smaller batch failed"


def test_an_error_of_the_compile_subprocess_is_a_row(monkeypatch):
    def run_in_subprocess(function, job, *, timeout, name):
        raise VerificationError(f"{name} ended with exit code 1")

    monkeypatch.setattr("tfanet.subprocesses.run_in_subprocess", run_in_subprocess)
    (row,) = scan_gpu.compiled_rows(plan(shapes=[SMALL], batches=[4]), CPU)
    assert (row.section, row.size, row.batch, row.dtype) == ("scan", str(SMALL), 4, "FP16")
    assert (row.name, row.seconds) == (gpu_cases.COMPILED, [])
    assert row.why == "torch.compile ended with exit code 1"


def timed(section, name, milliseconds, *, size="14400 x 256", batch=1, **others):
    return Row(section, size, batch, "FP16", name, seconds=[1e-3 * m for m in milliseconds], **others)


def test_tables_have_speedups_and_shares_of_the_copy_bandwidth():
    rows = [
        timed("scan", gpu_cases.TRITON, [1, 9, 2], ours=True, moved_bytes=6_000_000, error=1e-6),
        timed("scan", gpu_cases.MAMBA, [5], moved_bytes=4_000_000, host_bound=True),
        timed("scan", gpu_cases.OFLEX, [], why="not | built, and the reason is a very long one indeed"),
    ]
    ours, mamba, oflex = gpu_report.section_table("scan", rows, 4e9).rows
    assert ours[3:] == [gpu_cases.TRITON, "2.0000", "–", "6.0", "3", "75.0", "1.0e-06"]
    assert mamba[3:] == [gpu_cases.MAMBA, "5.0000*", "2.50", "4.0", "1", "20.0", "–"]
    assert oflex[4:] == ["not / built, and the reason is a very lon...", "–", "–", "–", "–", "–"]


def test_model_times_are_per_image():
    rows = [
        timed("model", gpu_cases.OUR_KERNELS, [20], batch=8, ours=True, error=0.0),
        timed("model", gpu_cases.VECTORISED, [64], batch=8, error=0.0),
    ]
    table = gpu_report.section_table("model", rows, 4e9)
    assert table.columns[4] == "ms per image"
    assert [row[4:6] for row in table.rows] == [["2.5000", "–"], ["8.0000", "3.20"]]


@pytest.mark.parametrize(
    ("section", "ours", "other", "rows", "expected"),
    [
        ("scan", gpu_cases.TRITON, gpu_cases.MAMBA, [(2, 3)], ["85.0%", "met", "1.50", "met"]),
        ("scan", gpu_cases.TRITON, gpu_cases.MAMBA, [(2.5, 3)], ["68.0%", "not met", "1.20", "not met"]),
        ("scan", gpu_cases.TRITON, gpu_cases.MAMBA, [(2, None)], ["85.0%", "met", "–", "not measured"]),
        ("cross", gpu_cases.FUSED, gpu_cases.UNFUSED, [(1, 2), (1, 1.9)], ["2.00", "met", "1.90", "not met"]),
        ("model", gpu_cases.OUR_KERNELS, gpu_cases.VECTORISED, [(None, 2)], ["–", "not measured"]),
        ("attention", gpu_cases.TRITON, gpu_cases.VECTORISED, [(1, 2)], []),
    ],
    ids=["met", "not-met", "no-mamba", "fused", "ours-failed", "no-goal"],
)
def test_goals(section, ours, other, rows, expected):
    measured = []
    for batch, (own_time, other_time) in enumerate(rows, start=1):
        for name, milliseconds in ((ours, own_time), (other, other_time)):
            times = [] if milliseconds is None else [milliseconds]
            measured.append(
                timed(section, name, times, batch=batch, moved_bytes=6_800_000, ours=name == ours)
            )
    cells = [cell for row in gpu_report.goals_table(measured, 4e9).rows for cell in (row[4], row[6])]
    assert cells == expected


def test_bandwidth_goal_applies_to_one_size_and_fp16():
    rows = [timed("scan", gpu_cases.TRITON, [2], size="225 x 2048", ours=True, moved_bytes=1)]
    assert [row[0] for row in gpu_report.goals_table(rows, 4e9).rows] == ["our scan / mamba_ssm"]
    fp32 = [Row("scan", "14400 x 256", 1, "FP32", gpu_cases.TRITON, seconds=[1.0], moved_bytes=1)]
    assert gpu_report.goals_table(fp32, 4e9).rows == []


def test_json_has_no_nan():
    (record,) = gpu_report.records([Row("scan", "1 x 1", 1, "FP16", "odd", error=float("nan"), why="w")], 1.0)
    assert (record["error"], record["median"], record["why"]) == (None, None, "w")


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
def test_invalid_options_are_rejected(tmp_path, arguments, reason):
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
def test_missing_requirements_are_rejected_before_work_starts(monkeypatch, cuda, absent, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(scan_gpu, "find_spec", lambda name: None if name == absent else object())
    with pytest.raises(UserError, match=reason):
        scan_gpu.require_gpu(["scan", "model"])
    if absent == "open_clip":
        scan_gpu.require_gpu(["scan"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_script_without_a_gpu_fails_with_one_line(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: no CUDA device here; benchmarks/scan_cpu.py times the scans on a CPU"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_script_runs_on_a_gpu(tmp_path):
    command = [SCRIPT, "--shapes", "225:64,900:32", "--batches", "1,2", "--fp32"]
    command += ["--preset", "tiny", "--repeats", "5", "--compile-limit", "0", "--out", tmp_path]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("scan-gpu-*.json")
    rows = json.loads(path.read_text())["results"]["rows"]
    assert {row["section"] for row in rows if row["ours"] and row["seconds"]} == set(scan_gpu.SECTIONS)
