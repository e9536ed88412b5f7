"""Plans built without a GPU, the proof of their precision, and builds that must fail."""

from __future__ import annotations

import dataclasses
from functools import partial

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from small_engines import write_sidecar

import tfanet
from tfanet.blocks import blocks_of
from tfanet.config import PRESETS
from tfanet.errors import UserError, VerificationError
from tfanet.files import sha256
from tfanet_engines import build, builder, builder_process, open_engine, proof, timing_cache, trt_api
from tfanet_engines.build import build_plan
from tfanet_engines.onnx_file import KEEP_FP32_KEY, read_onnx
from tfanet_engines.options import BuildOptions
from tfanet_engines.proof import expected_half_share
from tfanet_engines.sidecar import Sidecar, sidecar_path
from tfanet_engines.targets import RTX_CAPABILITIES, compute_capability, fits

pytestmark = pytest.mark.integration

pytest.importorskip("tensorrt_rtx")


def plan_files(folder):
    return sorted(path.name for path in folder.iterdir() if "plan" in path.name)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_a_plan_and_its_report(tmp_path, small_onnx, small_config, half):
    source = small_onnx(tmp_path / "model.onnx", half=half)
    report = build_plan(source, tmp_path / "model.plan", BuildOptions(batch=(1, 2, 4)))
    assert report.plan.read_bytes().startswith(b"vtrt")
    assert report.size_bytes == report.plan.stat().st_size
    assert (report.compute_capabilities, report.backend) == (("8.9",), "tensorrt-rtx")
    assert report.precision == ("fp16" if half else "fp32")
    assert report.proof.half_weight_share == (1.0 if half else 0.0)
    assert (report.proof.half_weights, report.proof.float_weights) == ((3, 0) if half else (0, 3))
    assert report.proof.half_compute_share == (1.0 if half else 0.0)
    assert report.bindings == (
        ("image", "uint8", (-1, 32, 32, 3)),
        ("tokens", "int64", (-1, 5)),
        ("mask_logits", "float32", (-1, 32, 32)),
    )
    sidecar = Sidecar.read(report.plan)
    sidecar.check_file(report.plan)
    assert sidecar.model_config() == small_config
    assert (sidecar.precision, sidecar.compute_capabilities) == (report.precision, ["8.9"])
    assert (sidecar.onnx_sha256, sidecar.weights_sha256) == (sha256(source), "ef" * 32)
    assert sidecar.proof["half_weight_share"] == report.proof.half_weight_share
    assert "build_plan(" in sidecar.rebuild
    assert "BuildOptions(batch=(1, 2, 4))" in sidecar.rebuild


@pytest.mark.parametrize("target", ["sm80", "rtx3090", "rtx5090"])
def test_other_targets_give_other_plans(tmp_path, onnx_file, target):
    report = build_plan(onnx_file, tmp_path / "other.plan", BuildOptions(target=target))
    assert Sidecar.read(report.plan).compute_capabilities == [compute_capability(target)] != ["8.9"]


def test_one_plan_for_several_gpus(tmp_path, onnx_file):
    one = build_plan(onnx_file, tmp_path / "one.plan", BuildOptions(target="rtx4090"))
    both = build_plan(onnx_file, tmp_path / "both.plan", BuildOptions(target="rtx5090, rtx4090,sm120"))
    assert Sidecar.read(both.plan).compute_capabilities == ["12.0", "8.9"]
    assert both.size_bytes > one.size_bytes


@pytest.mark.usefixtures("in_process")
def test_the_builders_error_is_in_the_message(tmp_path, onnx_file, monkeypatch):
    """Turing, which is not in the list of targets for this reason."""
    monkeypatch.setitem(RTX_CAPABILITIES, "7.5", ())
    with pytest.raises(VerificationError, match=r"cannot build .*Turing.*FP32 GEMM is not supported"):
        build_plan(onnx_file, tmp_path / "model.plan", BuildOptions(target="sm75"))
    assert plan_files(tmp_path) == []


def test_the_sidecar_of_the_onnx_file_is_used(tmp_path, onnx_file):
    write_sidecar(onnx_file, kind="onnx", precision="fp32", parity={"pairs": 3})
    sidecar = Sidecar.read(build_plan(onnx_file, tmp_path / "model.plan").plan)
    assert sidecar.weights_sha256 == "ab" * 32
    assert sidecar.proof["parity_of_the_onnx_file"] == {"pairs": 3}


def test_fp32_weights_with_an_fp16_sidecar_are_refused(tmp_path, onnx_file):
    write_sidecar(onnx_file, kind="onnx", precision="fp16")
    with pytest.raises(VerificationError, match="fp32 by its weights, fp16 by its sidecar"):
        build_plan(onnx_file, tmp_path / "model.plan")
    assert plan_files(tmp_path) == []


@pytest.mark.usefixtures("in_process")
def test_missing_fp16_weights_are_detected(tmp_path, small_onnx, monkeypatch):
    source = small_onnx(tmp_path / "model.onnx", half=True)
    monkeypatch.setattr(proof, "WEIGHT_HOLDERS", {})
    with pytest.raises(VerificationError, match=r"is fp16, but 0.0% of the network's weights are FP16"):
        build_plan(source, tmp_path / "model.plan")
    assert plan_files(tmp_path) == []


KEEP_FP32 = [
    pytest.param(True, "decoder.score", None, "", id="few-blocks"),
    pytest.param(False, "text.block1", 0.01, "", id="most-blocks"),
    pytest.param(True, "text.block1", 0.6, r"so 60.0% .* but in the network 100.0% are", id="too-many-fp16"),
    pytest.param(False, "text.block1", None, r"so 9.*% .* but in the network 0.0% are", id="too-few-fp16"),
]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("half", "keep", "expected", "message"), KEEP_FP32)
def test_the_fp16_share_is_that_of_the_precision_file(
    tmp_path, small_onnx, monkeypatch, half, keep, expected, message
):
    source = small_onnx(tmp_path / "model.onnx", half=half)
    model = onnx.load(source)
    model.metadata_props.add(key=KEEP_FP32_KEY, value=keep)
    onnx.save(model, source)
    if expected is not None:
        monkeypatch.setattr(build, "expected_half_share", lambda config, keep_fp32: expected)
    if message:
        with pytest.raises(VerificationError, match=message):
            build_plan(source, tmp_path / "model.plan")
        assert plan_files(tmp_path) == []
    else:
        assert build_plan(source, tmp_path / "model.plan").precision == "fp16"


def test_expected_half_share():
    config, model = PRESETS["tiny"], tfanet.build_model("tiny")
    kept = sum(p.numel() for p in blocks_of(model)["stage4.kps"].parameters())
    total = sum(p.numel() for p in model.parameters())
    assert expected_half_share(config, []) == 1
    assert expected_half_share(config, ["stage4.kps"]) == pytest.approx(1 - kept / total)
    with pytest.raises(UserError, match="no block stage9"):
        expected_half_share(config, ["stage9.kps"])


def test_a_plan_with_extra_outputs_is_for_inspection_only(tmp_path, onnx_file):
    model = onnx.load(onnx_file)
    model.graph.output.append(helper.make_tensor_value_info("grey", TensorProto.FLOAT, ["batch", 32, 32]))
    onnx.save(model, onnx_file)
    for extra in ([], ["other"]):
        with pytest.raises(VerificationError, match="has bindings"):
            build_plan(onnx_file, tmp_path / "model.plan", extra_outputs=extra)
    assert plan_files(tmp_path) == []
    with pytest.warns(DeprecationWarning, match="use extra_outputs="):
        build_plan(onnx_file, tmp_path / "former.plan", further_outputs=["grey"])
    assert Sidecar.read(tmp_path / "former.plan").proof["further_outputs"] == ["grey"]
    report = build_plan(onnx_file, tmp_path / "model.plan", extra_outputs=["grey"])
    assert report.bindings[-1] == ("grey", "float32", (-1, 32, 32))
    with pytest.raises(UserError, match="extra outputs for inspection"):
        open_engine(report.plan)


def test_an_altered_onnx_file_is_refused(tmp_path, onnx_file):
    write_sidecar(onnx_file, kind="onnx", precision="fp32", file_sha256="0" * 64)
    with pytest.raises(UserError, match="truncated or altered"):
        build_plan(onnx_file, tmp_path / "model.plan")


def test_the_parsers_error_is_in_the_message(tmp_path, small_onnx):
    node = helper.make_node("NoSuchOp", ["image", "tokens"], ["mask_logits"], name="odd_one", domain="acme")
    source = small_onnx(tmp_path / "model.onnx", nodes=[node])
    with pytest.raises(VerificationError, match=r"cannot parse .*NoSuchOp 'odd_one'.*Plugin not found"):
        build_plan(source, tmp_path / "model.plan")
    assert plan_files(tmp_path) == []


def test_unexpected_bindings_are_refused(tmp_path, small_onnx):
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "weight"], ["mixed"]),
        helper.make_node("Squeeze", ["mixed", "last"], ["mask_logits"]),
    ]
    source = small_onnx(tmp_path / "model.onnx", nodes=nodes)
    model = onnx.load(source)
    model.graph.input[0].name = model.graph.node[0].input[0] = "photo"
    onnx.save(model, source)
    with pytest.raises(VerificationError, match=r"has bindings.*photo"):
        build_plan(source, tmp_path / "model.plan")


def damaged(kind):
    def damage(path):
        data = path.read_bytes()
        path.write_bytes({"truncated": data[: len(data) // 2], "text": b"hello\n" * 99, "empty": b""}[kind])

    return damage


def strip_metadata(path):
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)


BAD_FILES = [
    pytest.param(damaged("truncated"), "truncated or not an ONNX", id="truncated"),
    pytest.param(damaged("text"), "not an ONNX file", id="text"),
    pytest.param(damaged("empty"), "is empty", id="empty"),
    pytest.param(lambda path: path.unlink(), "does not exist", id="missing"),
    pytest.param(strip_metadata, "not exported by tfanet", id="foreign"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_FILES)
def test_invalid_onnx_files_are_refused(tmp_path, onnx_file, spoil, message):
    spoil(onnx_file)
    with pytest.raises(UserError, match=message):
        build_plan(onnx_file, tmp_path / "model.plan")
    assert plan_files(tmp_path) == []


BAD_ARGUMENTS = [
    pytest.param({"target": "rtx4099"}, "rtx4099.*rtx4090", id="unknown-gpu"),
    pytest.param({"target": "rtx4090,"}, "unknown target GPU ''", id="empty-name"),
    pytest.param({"target": "sm90"}, "sm89", id="hopper"),
    pytest.param({"batch": (0, 1, 8)}, "batch must be", id="empty-batch"),
    pytest.param({"batch": (2, 1, 8)}, "batch must be", id="batch-out-of-order"),
    pytest.param({"batch": (1, 1, 1025)}, "<= largest <= 1024", id="batch-beyond-the-graph"),
    pytest.param({"workspace": 0}, "in MiB and must be at least 1", id="no-workspace"),
    pytest.param({"opt_level": 6}, "level is 0 to 5, not 6", id="level"),
    pytest.param({"hardware_compat": "all"}, "none or ampere_plus or same", id="hardware"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_options(arguments, message):
    with pytest.raises(UserError, match=message):
        BuildOptions(**arguments)


def test_an_unknown_backend_is_refused(tmp_path, onnx_file):
    with pytest.raises(UserError, match="unknown backend"):
        build_plan(onnx_file, tmp_path / "model.plan", backend="openvino")


RTX_UNSUPPORTED = [
    ({"hardware_compat": "ampere_plus"}, "no --hardware-compat: give --target a list"),
    ({"version_compat": True}, "no --version-compat"),
    ({"opt_level": 3}, "no --opt-level"),
    ({"timing_cache": True}, "no --timing-cache"),
    ({"plugins": True}, "no --plugins"),
]


@pytest.mark.parametrize(("given", "message"), RTX_UNSUPPORTED)
def test_unsupported_options_are_refused(tmp_path, onnx_file, given, message):
    with pytest.raises(UserError, match=message):
        build_plan(onnx_file, tmp_path / "model.plan", BuildOptions(**given), backend="tensorrt-rtx")


def test_plugins_are_refused_in_a_hardware_compatible_plan():
    options = BuildOptions(hardware_compat="ampere_plus")
    with pytest.raises(UserError, match="goes with --no-plugins"):
        options.require("tensorrt")
    dataclasses.replace(options, plugins=False).require("tensorrt")


def test_the_target_current_is_the_gpu_of_this_machine(tmp_path, onnx_file, monkeypatch):
    current = BuildOptions(target="current")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no NVIDIA GPU; name the GPU"):
        build_plan(onnx_file, tmp_path / "model.plan", current)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    report = build_plan(onnx_file, tmp_path / "model.plan", current)
    assert report.compute_capabilities == ("12.0",)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(UserError, match=r"unknown target GPU '9\.0'"):
        build_plan(onnx_file, tmp_path / "model.plan", current)


def test_a_missing_backend_is_an_error_with_its_install_command(tmp_path, onnx_file, monkeypatch):
    monkeypatch.setitem(trt_api.MODULES, "tensorrt", "no_such_module")
    with pytest.raises(UserError, match=r"pip install \"tfanet\[tensorrt\]\""):
        build_plan(onnx_file, tmp_path / "model.plan", backend="tensorrt")


@pytest.fixture
def in_process(monkeypatch):
    """Build in this process, where functions can be monkeypatched."""

    def run(request, plan, progress):
        plan_bytes, built = builder.build(request, progress)
        plan.write_bytes(plan_bytes)
        return built, 0

    monkeypatch.setattr(builder_process, "run", run)


@pytest.fixture
def rtx_as_tensorrt(monkeypatch, in_process):
    """TensorRT-RTX, which supports no plugins of ours, in place of TensorRT."""
    monkeypatch.setitem(trt_api.MODULES, "tensorrt", "tensorrt_rtx")
    monkeypatch.setattr(builder, "register_all", lambda capability: [])
    monkeypatch.setattr(timing_cache, "load", lambda config, version, capability: None)
    monkeypatch.setattr(timing_cache, "save", lambda config, version, capability: None)
    monkeypatch.setattr(builder, "_configure", partial(_as_rtx, builder._configure))
    monkeypatch.setattr(builder, "inspect_engine", lambda trt, logger, plan: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))


def _as_rtx(configure, trt, builder, request):
    return configure(trt, builder, dataclasses.replace(request, backend="tensorrt-rtx"))


@pytest.mark.usefixtures("rtx_as_tensorrt")
def test_tensorrt_parses_plugins_in_the_function_bodies(tmp_path, exported_fp16):
    with pytest.raises(VerificationError, match=r"cannot parse .*: CrossScanChunks .*Plugin not found"):
        build_plan(exported_fp16.path, tmp_path / "model.plan", backend="tensorrt")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("rtx_as_tensorrt")
@pytest.mark.parametrize("external", [False, True], ids=["one-file", "weights-in-another"])
def test_nodes_that_did_not_become_plugins_are_refused(tmp_path, exported_fp16, monkeypatch, external):
    """The parser uses the plain function bodies here, and has read the weights when that is detected."""
    monkeypatch.setattr("tfanet_engines.onnx_file.use_plugin_bodies", lambda proto: None)
    source = tmp_path / "model.onnx"
    onnx.save(
        onnx.load(exported_fp16.path), source, save_as_external_data=external, location="model.onnx.data"
    )
    with pytest.raises(VerificationError, match=r"the function body instead of the plugin for (\d+) of \1 "):
        build_plan(source, tmp_path / "model.plan", backend="tensorrt")
    assert source.with_name("model.onnx.data").exists() == external
    assert plan_files(tmp_path) == []


def test_every_kernel_of_a_node_is_a_plugin_layer(exported_fp16):
    path = exported_fp16.path
    nodes = [node.op_type for node in onnx.load(path).graph.node if node.domain == "tfanet"]
    layers = read_onnx(path).plugin_layers
    assert "CrossSelectiveScan" in nodes
    assert len(layers) == len(nodes) + 3 * nodes.count("CrossSelectiveScan")


@pytest.mark.usefixtures("rtx_as_tensorrt")
def test_tensorrt_builds_files_without_our_nodes(tmp_path, onnx_file):
    assert build_plan(onnx_file, tmp_path / "model.plan", backend="tensorrt").plugin_layers == 0


def test_progress_names_the_phases_on_stderr(tmp_path, onnx_file, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    build_plan(onnx_file, tmp_path / "model.plan", progress=True)
    captured = capfd.readouterr()
    assert "Building engine" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("rtx4090", "8.9"),
        ("RTX 4080 SUPER", "8.9"),
        ("GeForce RTX 3090 Ti", "8.6"),
        ("sm120", "12.0"),
        ("8.9", "8.9"),
    ],
)
def test_gpu_names(name, capability):
    assert compute_capability(name) == capability


@pytest.mark.parametrize(
    ("capability", "targets", "runs"),
    [
        ("8.9", ["8.9"], True),
        ("8.9", ["8.6", "8.9"], True),
        ("8.9", ["8.6"], False),
        ("12.0", ["8.0+"], True),
        ("10.0", ["9.0+"], True),
        ("8.9", ["9.0+"], False),
        ("8.0", ["8.0+"], True),
    ],
)
def test_gpus_that_run_a_plan(capability, targets, runs):
    assert fits(capability, targets) is runs


def test_every_capability_is_supported_by_tensorrt_rtx():
    import tensorrt_rtx

    known = {f"sm{capability.replace('.', '')}".upper() for capability in RTX_CAPABILITIES}
    assert known == set(tensorrt_rtx.ComputeCapability.__members__) - {"NONE", "CURRENT", "SM75"}


def test_an_onnx_file_is_described(onnx_file, small_config):
    file = read_onnx(onnx_file)
    assert (file.config, file.precision, file.sidecar) == (small_config, "fp32", None)
    assert not sidecar_path(onnx_file).exists()
