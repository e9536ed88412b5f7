"""Keys of the JSON files of `tfanet-eval`, which are an interface; test_benchmark.py has its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tfanet_eval.cli.evaluate import main
from tfanet_eval.drift.measure import BlockDrift, RelativeError

pytestmark = pytest.mark.integration

METRICS = {"mIoU", "oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"}


def test_keys_of_tfanet_eval_json(command, checkpoint, shapes_root):
    common = ("--engine", checkpoint, "--data", shapes_root, "--limit", 2)
    assert command(main, *common, "--reference", checkpoint, "--json", "compared.json").code == 0
    content = json.loads(Path("compared.json").read_text(encoding="utf-8"))
    assert set(content) == {
        "engine", "reference", "dataset", "split_by", "convention", "shuffled_sentences", "processes",
        "splits",
    }  # fmt: skip
    split = content["splits"]["val"]
    assert {name: set(part) for name, part in split.items()} == {
        "metrics": METRICS | {"count"},
        "latency": {"median_ms", "p95_ms", "calls", "batch"},
        "parity": {
            "pairs", "max_abs_error", "relative_error", "mean_abs_error", "mask_agreement", "pixels_flipped",
        },
        "reference_metrics": METRICS | {"count"},
        "intervals": METRICS,
    }  # fmt: skip
    assert command(main, *common, "--json", "alone.json").code == 0
    alone = json.loads(Path("alone.json").read_text(encoding="utf-8"))
    assert alone["reference"] is None
    assert set(alone) == set(content)
    assert set(alone["splits"]["val"]) == set(split)
    assert (alone["splits"]["val"]["parity"], alone["splits"]["val"]["reference_metrics"]) == (None, None)


def test_keys_of_the_results_file(command, checkpoint, shapes_root):
    common = ("--engine", checkpoint, "--reference", checkpoint, "--data", shapes_root, "--limit", 2)
    assert command(main, *common, "--results", "results.jsonl").code == 0
    head, record, _ = map(json.loads, Path("results.jsonl").read_text(encoding="utf-8").splitlines())
    assert set(head) == {"format", "version", "run", "environment"}
    assert set(head["run"]) == {
        "engine", "engine_sha256", "precision", "reference", "reference_sha256", "dataset", "split_by",
        "data", "splits", "image_size", "limit", "batch", "shuffled_sentences", "convention",
    }  # fmt: skip
    assert set(head["environment"]) == {"versions", "cpu", "gpu", "processes"}
    assert set(record) == {
        "split", "index", "image", "ref", "sentence", "text", "intersection", "union", "area", "distractors",
        "ms", "call", "batch", "level", "iou", "reference",
    }  # fmt: skip
    assert set(record["reference"]) == {"intersection", "union", "parity"}
    assert set(record["reference"]["parity"]) == {
        "pairs", "pixels", "flipped", "max_abs_error", "sum_abs_error", "sum_agreement", "sum_reference",
        "sum_reference_squares",
    }  # fmt: skip


def test_keys_of_drift_json(command, checkpoint, shapes_root):
    common = ("-c", checkpoint, "--data", shapes_root, "--pairs", 1, "--no-onnx", "--no-plan")
    done = command(main, "drift", "--fp16", *common, "--json", "drift.json")
    assert done.code == 0, done.err
    content = json.loads(Path("drift.json").read_text(encoding="utf-8"))
    assert set(content) == {"model", "keep_fp32", "blocks"}
    assert {frozenset(block) for block in content["blocks"]} == {
        frozenset({"block", "own", "half", "largest"})
    }
    full = BlockDrift("a", onnx=RelativeError(), plan=RelativeError())
    assert set(full.to_dict()) == {"block", "own", "half", "onnx", "plan", "largest"}
