"""The demo's table, with checkpoints instead of the models that it exports and builds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from small_engines import write_plan

from tfanet.console import run
from tfanet_engines.build import BuildReport
from tfanet_engines.proof import PrecisionProof
from tfanet_eval import benchmark, demo
from tfanet_eval.demo import COLUMNS, app

pytestmark = pytest.mark.integration


@pytest.fixture
def demo_of(command, monkeypatch, shapes_root, checkpoint, tmp_path):
    """Run the demo in this process, with `deployed` as its ONNX files and a plan for another GPU."""
    plan = write_plan(tmp_path / "model-fp16.plan", "8.9")

    def call(deployed):
        monkeypatch.setattr(benchmark, "onnx_pair", lambda checkpoint, stem: [deployed, deployed])
        monkeypatch.setattr(demo, "_build", lambda onnx, out: plan)
        monkeypatch.setattr(
            benchmark, "run_in_subprocess", lambda function, job, **options: function(job, None)
        )
        arguments = ("--checkpoint", checkpoint, "--data", shapes_root, "--limit", 3, "--out", "demo")
        return command(lambda: run(app), *arguments)

    return call


@pytest.fixture
def plan_report():
    proof = PrecisionProof(
        half_weights=3, float_weights=1, half_weight_bytes=6, float_weight_bytes=4, half_weight_share=0.75,
        half_layer_share=0.5, half_compute_share=1.0, layers=2,
    )  # fmt: skip
    return BuildReport(
        plan=Path("m.plan"), sidecar=Path("m.plan.json"), backend="tensorrt-rtx", builder_version="1.7",
        compute_capabilities=("8.9",), precision="fp16", proof=proof, inspected=None, bindings=(),
        batch=(1, 1, 8), size_bytes=9, seconds=1.0, peak_memory_bytes=1, plugin_layers=0,
    )  # fmt: skip


def table():
    return json.loads(Path("demo/table.json").read_text(encoding="utf-8"))


def test_every_model_has_a_row_and_the_plan_is_not_measured(demo_of, checkpoint):
    done = demo_of(checkpoint)
    assert done.code == 0, done.err
    reference, deployed, _, plan = table()["rows"]
    assert set(reference) == set(COLUMNS)
    assert (reference["max logit error"], reference["speedup"]) == (None, 1)
    assert (deployed["max logit error"], deployed["mask agreement"]) == (0, 1)
    assert deployed["mIoU"] == reference["mIoU"]
    assert [column for column in COLUMNS if plan[column] is not None] == ["engine", "MB"]
    assert (plan["engine"], plan["MB"]) == ("model-fp16.plan (built for sm89; runs on that GPU)", 12)
    assert "on 9 expressions" in table()["title"]
    markdown = Path("demo/table.md").read_text(encoding="utf-8")
    assert markdown.count("\n| ") == 5
    assert f"| {plan['engine']} |{' – |' * 9} " in markdown
    assert "shuffled" in markdown
    with Image.open("demo/predictions.png") as image:
        assert image.format == "PNG"


def test_broken_bound_exits_1_after_the_table_is_written(demo_of, other_checkpoint):
    done = demo_of(other_checkpoint)
    assert done.code == 1
    assert f"verification failed: {other_checkpoint.name}: failed: max logit error" in done.err
    assert table()["rows"][1]["max logit error"] > 1e-3


def test_line_about_the_plan_names_its_gpu(plan_report, capsys):
    demo._print_proof(plan_report)
    line = capsys.readouterr().out
    assert "plan by tensorrt-rtx 1.7 for sm89: 3 of 4 weights are half precision (75.0 %)" in line


@pytest.mark.slow
def test_demo_of_the_bundled_checkpoint_with_a_plan(command, shapes_root):
    done = command(lambda: run(app), "--data", shapes_root, "--limit", 4, "--out", "demo")
    assert done.code == 0, done.err
    assert "weights are half precision (9" in done.out
    reference, single, half, plan = table()["rows"]
    assert single["max logit error"] < 1e-3 < half["max logit error"]
    assert half["MB"] < 0.6 * single["MB"]
    assert plan["MB"] > 0
    assert reference["ms per image"] > 0
