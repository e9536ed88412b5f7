"""`tfanet-eval`: what it reports and writes, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tfanet_eval.cli.evaluate import main
from tfanet_eval.metrics import METRICS


@pytest.mark.parametrize("module", ["cli.evaluate", "cli.predict", "demo"])
def test_help_needs_no_heavy_import(module):
    heavy = "{'torch', 'numpy', 'PIL', 'onnxruntime', 'open_clip'} & set(sys.modules)"
    script = f"import sys, tfanet_eval.{module}; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_figures_of_every_split_on_screen_and_in_json(command, checkpoint, shapes_root):
    done = command(
        main, "--engine", checkpoint, "--data", shapes_root, "--split", "val", "--split", "testA",
        "--limit", 3, "--json", "new/figures.json", "--sheet", "sheet.png",
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = json.loads(Path("new/figures.json").read_text(encoding="utf-8"))
    assert list(summary["splits"]) == ["val", "testA"]
    assert summary["convention"] == "original"
    for figures in summary["splits"].values():
        assert figures["metrics"]["count"] == 3
        assert figures["latency"]["calls"] == 3
        assert f"{100 * figures['metrics']['mIoU']:.2f}" in done.out
        low, high = figures["intervals"]["oIoU"]
        assert 0 <= low <= high <= 1
        assert f"oIoU {100 * low:.2f} .. {100 * high:.2f}" in done.out
        assert set(figures["intervals"]) == set(METRICS)
    assert "no parity figures" in done.out
    assert "next: tfanet-predict" in done.out
    with Image.open("sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_parity_with_itself_holds(command, checkpoint, shapes_root):
    done = command(
        main, "--engine", checkpoint, "--reference", checkpoint, "--data", shapes_root, "--limit", 2
    )
    assert done.code == 0, done.err
    assert "within the fp32 bounds" in done.out


def test_parity_with_other_weights_fails_after_the_figures(
    command, checkpoint, other_checkpoint, shapes_root
):
    done = command(
        main, "--engine", checkpoint, "--reference", other_checkpoint, "--data", shapes_root, "--limit", 2,
        "--json", "figures.json",
    )  # fmt: skip
    assert done.code == 1
    assert "verification failed" in done.err
    assert "max logit error" in done.err
    assert (
        json.loads(Path("figures.json").read_text(encoding="utf-8"))["splits"]["val"]["parity"]["pairs"] == 2
    )


def test_shuffled_sentences_are_told(command, checkpoint, shapes_root):
    done = command(
        main,
        "--engine",
        checkpoint,
        "--data",
        shapes_root,
        "--limit",
        12,
        "--batch",
        6,
        "--shuffle-sentences",
    )
    assert done.code == 0, done.err
    assert "SHUFFLED" in done.out
    assert "calls of 6 images" in done.out


def test_a_checkpoint_runs_at_another_size(command, checkpoint, shapes_root):
    done = command(
        main, "--engine", checkpoint, "--reference", checkpoint, "--data", shapes_root, "--limit", 2,
        "--image-size", 128,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "within the fp32 bounds" in done.out


REFUSALS = [
    pytest.param(["--image-size", "100"], "must be a multiple of 32", id="odd-size"),
    pytest.param(["--engine", "none.onnx"], "none.onnx does not exist", id="no-engine"),
    pytest.param(["--engine", "model.pt"], "model.pt", id="wrong-engine"),
    pytest.param(["--engine", "model.plan"], "model.plan", id="plan-without-sidecar"),
    pytest.param(["--data", "nowhere"], "nowhere", id="no-data"),
    pytest.param(["--split", "testC"], "testC", id="no-split"),
    pytest.param(["--dataset", "coco"], "unknown data set 'coco'", id="no-dataset"),
    pytest.param(["--sheet", "sheet.txt"], "sheet.txt", id="sheet-no-picture"),
    pytest.param(["--json", "."], "is a folder", id="json-a-folder"),
    pytest.param(["--reference", "none.safetensors"], "none.safetensors does not exist", id="no-reference"),
]


@pytest.mark.parametrize(("arguments", "named"), REFUSALS)
def test_a_mistake_is_one_line_and_exit_2(command, checkpoint, shapes_root, tmp_path, arguments, named):
    for name in ("model.pt", "model.plan"):
        (tmp_path / name).write_bytes(b"no model")
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    options = {"--engine": checkpoint, "--data": shapes_root, "--limit": 1} | given
    done = command(main, *(word for pair in options.items() for word in pair))
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.strip().count("\n") == 0
    assert named in done.err


def test_drift_reads_the_named_division(command, checkpoint, gref_root):
    common = ("drift", "--fp16", "-c", checkpoint, "--data", gref_root, "--dataset", "refcocog")
    done = command(main, *common, "--split-by", "google", "--split", "test")
    assert done.code == 2
    assert "refs(google).p has no split 'test'; its splits: train, val" in done.err


@pytest.mark.parametrize("option", ["--limit", "--batch"])
def test_counts_are_at_least_one(command, option):
    assert command(main, option, 0).code == 2


def test_the_gate_names_the_worst_pairs_and_saves_them(command, checkpoint, other_checkpoint, shapes_root):
    common = ("--engine", checkpoint, "--data", shapes_root, "--limit", 6, "--batch", 6, "--gate")
    done = command(main, *common, "--reference", other_checkpoint)
    assert done.code == 1
    assert "gate fp32 on val: CLOSED; 6 pairs" in done.out
    assert "verification failed" in done.err
    assert len(list(Path("gate").glob("val-*-image-*-sentence-*.png"))) == done.out.count("  worst ") == 5
    same = command(main, *common, "--reference", checkpoint, "--gate-pictures", "none")
    assert same.code == 0, same.err
    assert "gate fp32 on val: open; 6 pairs, max logit error 0.00e+00" in same.out
    assert not Path("none").exists()


def test_the_gate_takes_no_shuffled_sentences(command):
    done = command(main, "--gate", "--shuffle-sentences")
    assert (done.code, "leave --shuffle-sentences out" in done.err) == (2, True)


def test_a_gate_without_a_reference_is_a_mistake(command, checkpoint, shapes_root):
    done = command(main, "--engine", checkpoint, "--data", shapes_root, "--gate")
    assert (done.code, "--gate has nothing to compare with" in done.err) == (2, True)
