"""The exported file: the contract of its graph, its outputs, and the errors when either is wrong."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

import tfanet
from tfanet.checkpoint import save_model, weights_sha256
from tfanet.config import TFANetConfig
from tfanet.errors import UserError, VerificationError
from tfanet.signature import signature_of
from tfanet.weights import bundled
from tfanet_engines import Sidecar, compare_logits, gate, open_engine
from tfanet_engines.sidecar import sidecar_path
from tfanet_eval.cli.evaluate import app as eval_app
from tfanet_export import export_onnx
from tfanet_export.cli import app
from tfanet_export.deploy import deployment_model
from tfanet_export.export import retarget, verification_pairs, verify
from tfanet_export.trace import check_graph

pytestmark = pytest.mark.integration

SCANS, CROSS_SCANS = 4, 9  # 4 CSSM; 5 VSS blocks and 4 SCSM
ATTENTIONS = 24  # 4 stages x 3 scales x 2 directions


@pytest.fixture(params=["fp32", "fp16"])
def report(request, exported):
    return exported[request.param]


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`large.onnx` of 160 pixels and 22 tokens, exported by the command from a checkpoint of 96 pixels."""
    folder = tmp_path_factory.mktemp("larger")
    torch.manual_seed(0)
    save_model(tfanet.build_model("tiny", token_length=22).eval(), folder / "random.safetensors")
    arguments = ["onnx", "-c", str(folder / "random.safetensors"), "-o", str(folder / "large.onnx")]
    arguments += ["--image-size", "160", "--pairs", "2"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "took" in result.output
    return folder / "large.onnx"


def test_graph_contract(report):
    proto = onnx.load(report.path)
    onnx.checker.check_model(proto, full_check=True)
    domains = {node.domain for node in proto.graph.node}
    assert domains <= {"", "tfanet"}
    assert report.nodes["tfanet::SelectiveScan"] == SCANS
    assert report.nodes["tfanet::CrossSelectiveScan"] == CROSS_SCANS
    assert report.nodes["tfanet::LinearCrossAttention"] == ATTENTIONS
    assert not {"Loop", "If", "Scan"} & set(report.nodes)
    operations = {"SelectiveScan", "CrossSelectiveScan", "LinearCrossAttention"}
    assert {function.name for function in proto.functions} == operations
    assert sum(report.nodes.values()) < 1300
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


def test_file_has_no_path_of_this_machine(report):
    content = report.path.read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


def test_node_count_does_not_grow_with_pixels_or_tokens(exported, larger):
    assert Sidecar.read(larger).cost["nodes"] == sum(exported["fp32"].nodes.values())


def test_weights_have_the_declared_precision(exported):
    for precision, expected in (("fp32", 0.0), ("fp16", 0.99)):
        proof = Sidecar.read(exported[precision].path).proof
        assert proof["half_weight_share"] == pytest.approx(expected, abs=0.01)
    assert exported["fp16"].bytes < 0.55 * exported["fp32"].bytes


def test_fp32_islands(random_model):
    model = deployment_model(random_model, fp16=True)
    types = {name: tensor.dtype for name, tensor in model.named_parameters()}
    scan = "vmamba.layers.0.blocks.0.op."
    assert {types[scan + n] for n in ("A_logs", "Ds", "dt_projs_bias", "out_norm.weight")} == {torch.float32}
    assert {types[scan + n] for n in ("in_proj.weight", "out_proj.weight")} == {torch.float16}
    assert random_model.decoder.alpha.dtype == torch.float32


def test_trained_model_in_half_precision():
    """Trained scans exceed FP16's range; those with random weights, as in the other tests, do not."""
    model = tfanet.load_model(bundled("tiny"))
    images, tokens, _ = (torch.from_numpy(x) for x in verification_pairs(model, 8))
    outputs = []
    hook = (
        model.fusion[3]
        .blocks[0]
        .scsm.out_norm.register_forward_hook(
            lambda module, inputs, output: outputs.append(inputs[0].abs().max().item())
        )
    )
    with torch.inference_mode():
        expected = model(images, tokens).numpy()
        hook.remove()
        actual = deployment_model(model, fp16=True)(images, tokens).numpy()
    assert outputs[0] > torch.finfo(torch.float16).max
    gate([compare_logits(expected, actual)], "fp16").require()


def test_folding_batch_norms_keeps_the_outputs():
    torch.manual_seed(1)
    model = tfanet.build_model("tiny").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.weight)
    deployed = deployment_model(model, fp16=False)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in deployed.modules())
    images, tokens, _ = (torch.from_numpy(x) for x in verification_pairs(model, 2))
    with torch.inference_mode():
        torch.testing.assert_close(deployed(images, tokens), model(images, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5], ids=lambda n: f"batch-{n}")
def test_onnx_runtime_equals_pytorch(random_model, report, batch):
    images, tokens, _ = verification_pairs(random_model, batch)
    with torch.inference_mode():
        expected = random_model(torch.from_numpy(images), torch.from_numpy(tokens)).numpy()
    with open_engine(report.path) as engine:
        actual = engine.infer(images, tokens)
    error = np.abs(actual - expected).max()
    assert error <= (1e-4 if report.precision == "fp32" else 0.02 * np.abs(expected).max())
    assert np.abs(expected).max() > 0.01


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_retarget_replaces_bodies_and_keeps_the_graph(exported, tmp_path, random_model, target):
    source = exported["fp32"].path
    out = retarget(source, tmp_path / "other.onnx", target)
    before, after = onnx.load(source), onnx.load(out)
    assert after.graph == before.graph
    operations = {node.op_type for function in after.functions for node in function.node}
    assert ("Scan" in operations) == (target == "cpu")
    parity = verify(random_model, out, 2, "fp32")[0].metrics
    assert parity.max_abs_error < 1e-4
    Sidecar.read(out).check_file(out)


def test_retarget_removes_a_stale_sidecar(exported, tmp_path):
    """A file without a sidecar must not end up with the sidecar of the file that it replaces."""
    bare = tmp_path / "bare.onnx"
    bare.write_bytes(exported["fp32"].path.read_bytes())
    retarget(exported["fp16"].path, tmp_path / "out.onnx", "gpu")
    retarget(bare, tmp_path / "out.onnx", "gpu")
    assert not sidecar_path(tmp_path / "out.onnx").exists()


def test_altered_file_is_not_opened(exported, tmp_path):
    altered = retarget(exported["fp32"].path, tmp_path / "model.onnx", "cpu")
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    with pytest.raises(UserError, match="truncated or altered"):
        open_engine(altered)


def test_metadata_and_sidecar(random_model, report):
    values = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    assert TFANetConfig.from_json(values["tfanet.config"]) == random_model.config
    assert values["tfanet.weights_sha256"] == weights_sha256(random_model)
    assert values["tfanet.precision"] == report.precision
    sidecar = Sidecar.read(report.path)
    sidecar.check_file(report.path)
    assert sidecar.weights_sha256 == weights_sha256(random_model)
    assert sidecar.parity == json.loads(json.dumps(report.parity.to_dict()))
    assert sidecar.rebuild.startswith("tfanet-export onnx")


def test_wrong_outputs_fail_the_verification(random_model, exported, tmp_path, monkeypatch):
    """A file whose outputs differ from the model's fails, with the error in the message, and is removed."""
    proto = onnx.load(exported["fp32"].path)
    (bias,) = (x for x in proto.graph.initializer if x.name == "decoder.score.bias")
    shifted = onnx.numpy_helper.to_array(bias) + np.float32([0, 0.01])
    bias.CopyFrom(onnx.numpy_helper.from_array(shifted, bias.name))
    del proto.metadata_props[:]
    monkeypatch.setattr("tfanet_export.export.trace", lambda model, target: proto)
    with pytest.raises(VerificationError, match=r"max logit error 0\.01.* above the fp32 bound"):
        export_onnx(random_model, tmp_path / "model.onnx", pairs=2)
    assert list(tmp_path.iterdir()) == []


def test_graph_check_names_the_invalid_node_or_tensor(random_model, exported):
    signature = signature_of(random_model.config)
    proto = onnx.load(exported["fp32"].path)
    proto.graph.node[0].domain = "somewhere"
    with pytest.raises(VerificationError, match="somewhere::"):
        check_graph(proto, signature)
    proto = onnx.load(exported["fp32"].path)
    del proto.functions[:]
    with pytest.raises(VerificationError, match="has no function body"):
        check_graph(proto, signature)
    proto = onnx.load(exported["fp32"].path)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(VerificationError, match="mask_logits float16"):
        check_graph(proto, signature)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda g: g.input.pop(), "the graph lacks the input tokens", id="missing-input"),
        pytest.param(lambda g: g.output.pop(), "the graph lacks the output mask_logits", id="missing-output"),
        pytest.param(
            lambda g: g.input.add(name="x"), "the graph has the unexpected input x", id="extra-input"
        ),
        pytest.param(
            lambda g: g.output.add(name="y"), "the graph has the unexpected output y", id="extra-output"
        ),
        pytest.param(
            lambda g: g.output.add(name="mask_logits"),
            "the graph has the unexpected output mask_logits",
            id="twice",
        ),
        pytest.param(lambda g: g.input.reverse(), "tokens int64 .* should be image uint8", id="other-order"),
    ],
)
def test_graph_check_names_the_missing_or_unexpected_tensor(random_model, exported, change, message):
    proto = onnx.load(exported["fp32"].path)
    change(proto.graph)
    with pytest.raises(VerificationError, match=message):
        check_graph(proto, signature_of(random_model.config))


def test_polygraphy_reads_the_file(report):
    """Tools without any support for tfanet read the file as ONNX."""
    command = [Path(sys.executable).parent / "polygraphy", "inspect", "model", report.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "image [dtype=uint8, shape=('batch', 96, 96, 3)]" in done.stdout
    assert "mask_logits [dtype=float32, shape=('batch', 96, 96)]" in done.stdout
    assert "{'tfanet': 1}" in done.stdout


def test_command_line_onnx_to_plan(exported, tmp_path):
    out = tmp_path / "a folder" / "model.plan"
    arguments = ["trt", "--onnx", str(exported["fp16"].path), "--fp16", "-o", str(out), "--batch", "1,2,4"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "of the weights" in result.output
    sidecar = Sidecar.read(out)
    sidecar.check_file(out)
    assert sidecar.compute_capabilities == ["8.9"]
    assert sidecar.proof["half_weight_share"] > 0.99
    network = Sidecar.read(out.with_name("model.plan.onnx"))
    assert sidecar.onnx_sha256 == network.file_sha256
    assert network.parity is None
    assert sidecar.rebuild == network.rebuild
    words = shlex.split(sidecar.rebuild)
    assert words[:4] == ["tfanet-export", "trt", "--onnx", str(exported["fp16"].path)]
    assert ["--out", str(out)] == words[4:6]
    assert {"--target", "rtx4090", "--batch", "1,2,4", "--fp16"} < set(words)


def test_command_line_of_another_size(larger, shapes_root):
    sidecar = Sidecar.read(larger)
    assert sidecar.preprocessing["size"] == 160
    assert sidecar.cost["nodes"] > 500
    assert sidecar.cost["bytes"] == larger.stat().st_size
    assert "--image-size 160" in sidecar.rebuild
    arguments = ["--engine", str(larger), "--reference", str(larger.with_name("random.safetensors"))]
    arguments += ["--limit", "2", "--data", str(shapes_root)]
    evaluated = CliRunner().invoke(eval_app, arguments, catch_exceptions=False)
    assert evaluated.exit_code == 0, evaluated.output
    with pytest.raises(UserError, match=r"large.onnx is fixed; export"):
        open_engine(larger, image_size=96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["onnx", "--image-size", "100"], "must be a multiple of 32"),
        (["trt", "--onnx", "FP32", "--image-size", "96"], "is fixed"),
        (["onnx", "-c", "nowhere.safetensors"], "does not exist"),
        (["onnx", "-o", "model.txt"], "must end in .onnx"),
        (["onnx", "-o", "file/model.onnx"], "cannot write"),
        (["onnx", "-c", "file"], "truncated or not a .safetensors|is empty"),
        (["trt", "--backend", "tensorrt"], r"pip install"),
        (["trt", "--target", "rtx9999"], "unknown target GPU"),
        (["trt", "--batch", "8,1"], "three numbers"),
        (["trt", "--batch", "8,1,1"], "smallest <= optimal <= largest"),
        (["trt", "--batch", "1,1,2000"], "largest <= 1024"),
        (["trt", "--onnx", "file"], "is empty"),
        (["trt", "--onnx", "FP32", "--fp16"], "precision is a property of the graph"),
        (["trt", "-c", "file", "--onnx", "file"], "not both"),
        (["trt", "-o", "model.onnx"], "must end in .plan"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_of_the_command_line(exported, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    arguments = [str(exported["fp32"].path) if word == "FP32" else word for word in arguments]
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
