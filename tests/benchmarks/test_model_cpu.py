"""`model_cpu.py`: the model without scans, other image sizes, profiles, the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import model_cpu
import model_measure
import numpy as np
import onnx
import pytest
import scan_measure
import torch
from inputs import model_inputs
from onnx import TensorProto, helper
from onnx_cpu import onnx_call
from options import Shape
from typer.testing import CliRunner

from tfanet import vmamba
from tfanet.config import PRESETS, preset
from tfanet.errors import UserError
from tfanet.ops import native
from tfanet.ops.cross_selective_scan import cross_selective_scan_loop
from tfanet.ops.selective_scan import selective_scan_loop
from tfanet_plugins.operations import CROSS_SCAN, DOMAIN, DOMAIN_VERSION, OPSET, SCAN

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("operation", "oracle", "attribute"),
    [
        pytest.param(SCAN, selective_scan_loop, "selective_scan", id=SCAN),
        pytest.param(CROSS_SCAN, cross_selective_scan_loop, "cross_selective_scan", id=CROSS_SCAN),
    ],
)
def test_models_without_scans_are_the_same_in_both_runtimes(tmp_path, operation, oracle, attribute):
    inputs = scan_measure.make_inputs(operation, Shape(12, 3, states=2))
    tensors = list(inputs.values())
    proto = scan_measure.one_node(operation, inputs)
    onnx.save(proto, tmp_path / "with.onnx")
    model_measure.write_without_scans(tmp_path / "with.onnx", tmp_path / "without.onnx")
    feed = {entry.name: inputs[entry.name].numpy() for entry in proto.graph.input}
    actual = onnx_call(tmp_path / "without.onnx", 1, feed, native=False)()
    with model_measure.no_scans():
        expected = getattr(vmamba, attribute)(*tensors)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-6, atol=1e-6)
    assert np.abs(actual - oracle(*tensors).numpy()).max() > 0.1


def test_scans_are_left_out_inside_the_context_only(random_model):
    call = model_measure.torch_call(random_model, model_inputs(random_model.config))
    before = call()
    with model_measure.no_scans():
        without = call()
    assert np.abs(without - before).max() > 1e-6
    np.testing.assert_array_equal(call(), before)


def test_model_at_another_size_shares_its_weights(random_model):
    resized = model_measure.at_size(random_model, 160)
    assert random_model.config.image_size == 96
    weights = zip(resized.parameters(), random_model.parameters(), strict=True)
    assert all(one is other for one, other in weights)
    assert model_measure.torch_call(resized, model_inputs(resized.config))().shape == (1, 160, 160)


def event(name, ts, dur, operator=None):
    return {"cat": "Node" if operator else "Session", "name": name, "ts": ts, "dur": dur,
            "args": {"op_name": operator} if operator else {}}  # fmt: skip


def test_profile_counts_outermost_nodes_of_the_last_run():
    events = [
        event("model_run", 0, 400),
        event("conv_kernel_time", 10, 300, "Conv"),
        event("mul_in_scan_kernel_time", 1012, 20, "Mul"),
        event("mul_in_scan_kernel_time", 1040, 20, "Mul"),
        event("scan_kernel_time", 1010, 90, "Scan"),
        event("mul_kernel_time", 1100, 10, "Mul"),
        event("scan_kernel_time", 1120, 30, "Scan"),
        event("model_run", 1000, 200),
    ]
    assert model_measure.profile_lines(events) == [("Scan", 2, 120e-6), ("Mul", 1, 10e-6)]


def test_profile_table_sums_up_the_rest():
    lines = [model_measure.Line(f"op{i}", 2, 0.010) for i in range(14)]
    rows = model_cpu.profile_table("PyTorch, eager", lines).rows
    assert [row[0] for row in rows] == [*(f"op{i}" for i in range(12)), "2 others"]
    assert rows[-1] == ["2 others", "4", "20.0", "14.3 %"]


TIMES = {
    "PyTorch, eager": [2.0, 3.0, 2.5],
    "PyTorch, eager, without scans": [2.0],
    "ONNX Runtime": [2.0],
    "ONNX Runtime, without scans": [1.0],
    "PyTorch, eager, 192 x 192": [10.0],
}


def test_shares_growth_and_ratios_are_of_medians():
    times = model_cpu.Times((96, 192), TIMES)
    assert [row[1:] for row in model_cpu.times_table(times).rows] == [
        ["2.500", "2.000", "3.000", "2.000", "20.0 %"],
        ["2.000", "2.000", "2.000", "1.000", "50.0 %"],
    ]
    (growth,) = model_cpu.growth_table(times)
    assert growth.columns == ["runtime", "96 x 96, s", "192 x 192, s", "growth (pixels 4.00)"]
    assert [row[1:] for row in growth.rows] == [["2.500", "10.000", "4.00"], ["2.000", "–", "–"]]
    assert model_cpu.growth_table(model_cpu.Times((96,), TIMES)) == []
    (line,) = model_cpu.ratios(times, 2)
    assert line.startswith(
        "ONNX Runtime is 1.25 times as fast as PyTorch, eager, without the scans 2.00 times"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", (96, 192)), ("64", (64,)), ("96, 160", (96, 160))],
    ids=["default", "one", "two"],
)
def test_sizes(text, expected):
    assert model_cpu.parse_sizes(text, PRESETS["tiny"]) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [("big", "--sizes takes whole numbers"), ("100", "image_size must be a multiple of 32")],
)
def test_invalid_sizes_are_rejected(text, reason):
    with pytest.raises(UserError, match=reason):
        model_cpu.parse_sizes(text, PRESETS["tiny"])


def small_onnx_file(path, config):
    """An ONNX file with tiny's signature that only scans the image's colours."""
    size = config.image_size
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", config.token_length])
    logits = helper.make_tensor_value_info("mask_logits", TensorProto.FLOAT, ["batch", size, size])
    parameters = {"W": (12, 1), "A": (12, 1), "D": (12,), "bias": (12,)}
    constants = [
        onnx.numpy_helper.from_array(np.full(shape, -0.5, np.float32), name)
        for name, shape in parameters.items()
    ]
    constants.append(onnx.numpy_helper.from_array(np.array([-1]), "last"))
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["x"] * 4, ["p"], axis=-1),
        helper.make_node(CROSS_SCAN, ["x", "p", "W", "A", "D", "bias"], ["y"], domain=DOMAIN),
        helper.make_node("ReduceSum", ["y", "last"], ["mask_logits"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "small", [image, tokens], [logits], constants)
    proto = helper.make_model(
        graph,
        functions=[scan_measure.cpu_function(CROSS_SCAN, states=1)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
        ir_version=10,
    )
    helper.set_model_props(proto, {"tfanet.config": config.to_json()})
    onnx.save(proto, path)
    return path


def invoke_model_benchmark(*arguments):
    return CliRunner().invoke(model_cpu.app, ["--preset", "tiny", *arguments], catch_exceptions=False)


def test_report_has_all_tables(tmp_path):
    file = small_onnx_file(tmp_path / "small.onnx", PRESETS["tiny"])
    threads = torch.get_num_threads()
    try:
        result = invoke_model_benchmark(
            "--onnx",
            str(file),
            "--sizes",
            "96,128",
            "--threads",
            "1",
            "--repeats",
            "2",
            "--out",
            str(tmp_path),
        )
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0
    assert "the ONNX file has other weights than the model in PyTorch" in result.output
    (path,), (markdown,) = tmp_path.glob("model_cpu-tiny-*.json"), tmp_path.glob("model_cpu-tiny-*.md")
    results = json.loads(path.read_text())["results"]
    runs = {name: len(seconds) for name, seconds in results["seconds"].items()}
    names = {
        "PyTorch, eager", "PyTorch, eager, without scans", "ONNX Runtime", "ONNX Runtime, without scans",
        "PyTorch, eager, 128 x 128",
    } | ({"ONNX Runtime, function bodies"} if native.library() else set())  # fmt: skip
    assert runs == dict.fromkeys(names, 2)
    scan = CROSS_SCAN if native.library() else "Scan"
    assert {line["operator"] for line in results["profiles"]["ONNX Runtime"]} >= {scan, "Concat"}
    assert {line["operator"] for line in results["profiles"]["PyTorch, eager"]} >= {"aten::addmm"}
    text = markdown.read_text()
    for heading in ("One image of 96 x 96", "Growth with the image size", "Profile of one run of "):
        assert f"## {heading}" in text
        assert heading in result.output


@pytest.mark.parametrize(
    ("size", "reason"), [(128, "another config or image size than the model")], ids=["another-size"]
)
def test_file_of_another_model_is_rejected(tmp_path, size, reason):
    file = small_onnx_file(tmp_path / "small.onnx", preset("tiny", image_size=size))
    with pytest.raises(UserError, match=reason):
        invoke_model_benchmark("--onnx", str(file), "--out", str(tmp_path))


@pytest.mark.slow
def test_script_exports_and_runs(tmp_path):
    command = ["benchmarks/model_cpu.py", "--preset", "tiny", "--onnx-growth", "--repeats", "1"]
    command += ["--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "the ONNX file has the weights of the model in PyTorch" in done.stdout
    (path,) = tmp_path.glob("*.json")
    assert "ONNX Runtime, 192 x 192" in json.loads(path.read_text())["results"]["seconds"]
