"""The model's benchmark: what it takes out is all it takes out, it times in turns, it reports."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

from tfanet.config import PRESETS, preset
from tfanet.errors import UserError
from tfanet.ops import native
from tfanet.ops.cross_selective_scan import cross_selective_scan_loop
from tfanet.ops.selective_scan import selective_scan_loop
from tfanet_export.functions import CROSS_SCAN, DOMAIN, DOMAIN_VERSION, OPSET, SCAN

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
formulations, scan_measure, model_measure, model_cpu = map(
    importlib.import_module, ("formulations", "scan_measure", "model_measure", "model_cpu")
)
vmamba = importlib.import_module("tfanet.vmamba")


@pytest.mark.parametrize(
    ("operation", "oracle", "attribute"),
    [
        pytest.param(SCAN, selective_scan_loop, "selective_scan", id=SCAN),
        pytest.param(CROSS_SCAN, cross_selective_scan_loop, "cross_selective_scan", id=CROSS_SCAN),
    ],
)
def test_what_stands_in_for_a_scan_is_the_same_in_both_runtimes(tmp_path, operation, oracle, attribute):
    values = scan_measure.make_inputs(operation, scan_measure.Shape(12, 3, states=2))
    tensors = [torch.from_numpy(value) for value in values.values()]
    functions = formulations.onnx_formulations(states=2, length=12)[operation, "ships"]
    onnx.save(scan_measure.one_node(operation, functions, values), tmp_path / "with.onnx")
    model_measure.write_without_scans(tmp_path / "with.onnx", tmp_path / "without.onnx")
    session = scan_measure.open_session(tmp_path / "without.onnx", 1)
    actual = session.run(None, {entry.name: values[entry.name] for entry in session.get_inputs()})[0]
    with model_measure.no_scans():
        expected = getattr(vmamba, attribute)(*tensors)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-6, atol=1e-6)
    assert np.abs(actual - oracle(*tensors).numpy()).max() > 0.1


def test_scans_are_out_of_the_model_only_while_asked(random_model):
    call = model_measure.torch_call(random_model, model_measure.example(random_model))
    before = call()
    with model_measure.no_scans():
        without = call()
    assert np.abs(without - before).max() > 1e-6
    np.testing.assert_array_equal(call(), before)


def test_a_model_at_another_size_shares_its_weights(random_model):
    grown = model_measure.at_size(random_model, 160)
    assert random_model.config.image_size == 96
    weights = zip(grown.parameters(), random_model.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in weights)
    assert model_measure.torch_call(grown, model_measure.example(grown))().shape == (1, 160, 160)


def test_turns_leave_the_first_run_out():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = model_measure.in_turns(calls, 2)
    assert order == ["a", "b"] * 3
    assert {name: len(runs) for name, runs in seconds.items()} == {"a": 2, "b": 2}


def event(name, ts, dur, operator=None):
    return {"cat": "Node" if operator else "Session", "name": name, "ts": ts, "dur": dur,
            "args": {"op_name": operator} if operator else {}}  # fmt: skip


def test_a_profile_counts_outermost_nodes_of_the_last_run():
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


def test_a_profile_table_sums_up_the_rest():
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
def test_impossible_sizes_are_refused(text, reason):
    with pytest.raises(UserError, match=reason):
        model_cpu.parse_sizes(text, PRESETS["tiny"])


def stand_in_file(path, config):
    """An ONNX file of tiny's signature that scans the picture's colours and nothing else."""
    size = config.image_size
    picture = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])
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
    graph = helper.make_graph(nodes, "stand_in", [picture, tokens], [logits], constants)
    proto = helper.make_model(
        graph,
        functions=formulations.onnx_formulations(states=1, length=size**2)[CROSS_SCAN, "ships"],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
        ir_version=10,
    )
    helper.set_model_props(proto, {"tfanet.config": config.to_json()})
    onnx.save(proto, path)
    return path


def invoke_model_benchmark(*arguments):
    return CliRunner().invoke(model_cpu.app, ["--preset", "tiny", *arguments], catch_exceptions=False)


def test_model_benchmark_writes_its_tables(tmp_path):
    file = stand_in_file(tmp_path / "stand-in.onnx", PRESETS["tiny"])
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
    (figures,), (markdown,) = tmp_path.glob("model_cpu-tiny-*.json"), tmp_path.glob("model_cpu-tiny-*.md")
    results = json.loads(figures.read_text())["results"]
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
    for heading in ("One picture of 96 x 96", "Growth with the picture", "Profile of one run of "):
        assert f"## {heading}" in text
        assert heading in result.output


@pytest.mark.parametrize(
    ("size", "reason"), [(128, "another config than the model, or another image size")], ids=["another-size"]
)
def test_another_models_file_is_refused(tmp_path, size, reason):
    file = stand_in_file(tmp_path / "stand-in.onnx", preset("tiny", image_size=size))
    with pytest.raises(UserError, match=reason):
        invoke_model_benchmark("--onnx", str(file), "--out", str(tmp_path))


@pytest.mark.slow
def test_model_benchmark_as_typed(tmp_path):
    command = ["benchmarks/model_cpu.py", "--preset", "tiny", "--onnx-growth", "--repeats", "1"]
    command += ["--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=BENCHMARKS.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "the ONNX file has the weights of the model in PyTorch" in done.stdout
    (figures,) = tmp_path.glob("*.json")
    assert "ONNX Runtime, 192 x 192" in json.loads(figures.read_text())["results"]["seconds"]
