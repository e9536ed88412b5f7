"""`tfanet-eval`: its output, the files it writes, and its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tfanet_eval.cli.evaluate import main
from tfanet_eval.metrics import METRICS

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("module", ["cli.evaluate", "cli.predict", "demo"])
def test_help_needs_no_heavy_import(module):
    heavy = "{'torch', 'numpy', 'PIL', 'onnxruntime', 'open_clip'} & set(sys.modules)"
    script = f"import sys, tfanet_eval.{module}; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_metrics_of_every_split_on_stdout_and_in_json(command, checkpoint, shapes_root):
    done = command(
        main, "--engine", checkpoint, "--data", shapes_root, "--split", "val", "--split", "testA",
        "--limit", 3, "--json", "new/metrics.json", "--sheet", "sheet.png",
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = json.loads(Path("new/metrics.json").read_text(encoding="utf-8"))
    assert list(summary["splits"]) == ["val", "testA"]
    assert summary["convention"] == "original"
    for split in summary["splits"].values():
        assert split["metrics"]["count"] == 3
        assert split["latency"]["calls"] == 3
        assert f"{100 * split['metrics']['mIoU']:.2f}" in done.out
        low, high = split["intervals"]["oIoU"]
        assert 0 <= low <= high <= 1
        assert f"oIoU {100 * low:.2f} .. {100 * high:.2f}" in done.out
        assert set(split["intervals"]) == set(METRICS)
    assert "parity was not measured" in done.out
    assert "next: tfanet-predict" in done.out
    with Image.open("sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_parity_of_a_checkpoint_with_itself(command, checkpoint, shapes_root):
    done = command(
        main, "--engine", checkpoint, "--reference", checkpoint, "--data", shapes_root, "--limit", 2
    )
    assert done.code == 0, done.err
    assert "within the fp32 bounds" in done.out


def test_parity_with_other_weights_fails_after_the_table(command, checkpoint, other_checkpoint, shapes_root):
    done = command(
        main, "--engine", checkpoint, "--reference", other_checkpoint, "--data", shapes_root, "--limit", 2,
        "--json", "metrics.json",
    )  # fmt: skip
    assert done.code == 1
    assert "verification failed" in done.err
    assert "max logit error" in done.err
    assert (
        json.loads(Path("metrics.json").read_text(encoding="utf-8"))["splits"]["val"]["parity"]["pairs"] == 2
    )


def test_breakdown_and_convention_are_printed(command, checkpoint, shapes_root):
    common = ("--engine", checkpoint, "--data", shapes_root, "--limit", 2)
    done = command(main, *common, "--breakdown", "--convention", "480")
    assert done.code == 0, done.err
    assert "groups of val" in done.out
    assert "masks at 480 x 480" in done.out
    plain = command(main, *common)
    assert "groups of" not in plain.out
    assert "masks at the images' own size" in plain.out


def test_shuffled_expressions_are_in_the_title(command, checkpoint, shapes_root):
    common = ("--engine", checkpoint, "--data", shapes_root, "--limit", 12, "--batch", 6)
    done = command(main, *common, "--shuffle-expressions")
    assert done.code == 0, done.err
    assert "expressions SHUFFLED" in done.out
    assert "calls of 6 images" in done.out
    former = command(main, *common, "--shuffle-sentences")
    assert former.code == 0, former.err
    assert "expressions SHUFFLED" in former.out
    assert "--shuffle-sentences is deprecated; use --shuffle-expressions\n" in former.err


def test_checkpoint_runs_at_another_size(command, checkpoint, shapes_root):
    done = command(
        main, "--engine", checkpoint, "--reference", checkpoint, "--data", shapes_root, "--limit", 2,
        "--image-size", 128,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "within the fp32 bounds" in done.out


ERRORS = [
    pytest.param(["--image-size", "100"], "must be a multiple of 32", id="odd-size"),
    pytest.param(["--engine", "none.onnx"], "none.onnx does not exist", id="no-engine"),
    pytest.param(["--engine", "model.pt"], "model.pt", id="wrong-engine"),
    pytest.param(["--engine", "model.plan"], "model.plan", id="plan-without-sidecar"),
    pytest.param(["--data", "nowhere"], "nowhere", id="no-data"),
    pytest.param(["--split", "testC"], "testC", id="no-split"),
    pytest.param(["--dataset", "coco"], "unknown data set 'coco'", id="no-dataset"),
    pytest.param(["--sheet", "sheet.txt"], "sheet.txt", id="sheet-not-an-image"),
    pytest.param(["--json", "."], "is a folder", id="json-a-folder"),
    pytest.param(["--reference", "none.safetensors"], "none.safetensors does not exist", id="no-reference"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_error_is_one_line_and_exit_2(command, checkpoint, shapes_root, tmp_path, arguments, message):
    for name in ("model.pt", "model.plan"):
        (tmp_path / name).write_bytes(b"not a model")
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    options = {"--engine": checkpoint, "--data": shapes_root, "--limit": 1} | given
    done = command(main, *(word for pair in options.items() for word in pair))
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.strip().count("\n") == 0
    assert message in done.err


def test_drift_reads_the_refs_file_of_split_by(command, checkpoint, gref_root):
    common = ("drift", "--fp16", "-c", checkpoint, "--data", gref_root, "--dataset", "refcocog")
    done = command(main, *common, "--split-by", "google", "--split", "test")
    assert done.code == 2
    assert "refs(google).p has no split 'test'; its splits: train, val" in done.err


@pytest.mark.parametrize("option", ["--limit", "--batch"])
def test_counts_are_at_least_one(command, option):
    assert command(main, option, 0).code == 2


def test_closed_gate_prints_and_saves_the_worst_pairs(command, checkpoint, other_checkpoint, shapes_root):
    common = ("--engine", checkpoint, "--data", shapes_root, "--limit", 6, "--batch", 6, "--gate")
    done = command(main, *common, "--reference", other_checkpoint)
    assert done.code == 1
    assert "gate fp32 on val: CLOSED; 6 pairs" in done.out
    assert "verification failed" in done.err
    assert len(list(Path("gate").glob("val-*-image-*-sentence-*.png"))) == done.out.count("  worst ") == 5
    same = command(main, *common, "--reference", checkpoint, "--gate-images", "none")
    assert same.code == 0, same.err
    assert "gate fp32 on val: open; 6 pairs, max logit error 0.00e+00" in same.out
    assert not Path("none").exists()


def test_gate_with_shuffled_expressions_is_an_error(command):
    done = command(main, "--gate", "--shuffle-expressions")
    assert (done.code, "leave --shuffle-expressions out" in done.err) == (2, True)


def test_gate_without_a_reference_is_an_error(command, checkpoint, shapes_root):
    done = command(main, "--engine", checkpoint, "--data", shapes_root, "--gate")
    assert (done.code, "--gate has no reference to compare with" in done.err) == (2, True)
