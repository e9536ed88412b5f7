"""Engines: the three kinds of file behind one interface, and every file that must be refused in one line."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import tfanet
from tfanet.checkpoint import save_model
from tfanet.errors import UserError
from tfanet.files import sha256
from tfanet_engines import open_engine, run_plan, trt_api
from tfanet_engines.sidecar import Sidecar, sidecar_path

CPU = ["CPUExecutionProvider"]


@pytest.fixture(scope="module")
def small_model():
    torch.manual_seed(0)
    sizes = {"vmamba_dims": (8, 8, 8, 8), "vmamba_depths": (1, 1, 1, 1), "mlam_dim": 8, "decoder_dim": 8}
    return tfanet.build_model("tiny", image_size=32, token_length=5, **sizes).eval()


@pytest.fixture(scope="module")
def checkpoint(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_model(small_model, path)
    return path


@pytest.fixture
def plan(tmp_path, small_config):
    path = tmp_path / "model.plan"
    path.write_bytes(b"vtrt" * 100)
    write_sidecar(path, small_config)
    return path


def write_sidecar(path, config, **fields):
    values = {
        "kind": "plan", "weights_sha256": None, "precision": "fp16", "proof": {}, "builder": "tensorrt_rtx",
        "builder_version": "1.7.1.116", "compute_capabilities": ["8.9"], "onnx_sha256": "cd" * 32,
        "file_sha256": sha256(path), "rebuild": "tfanet-export trt --fp16", "cost": {"seconds": 1.0},
    }  # fmt: skip
    Sidecar.of(config, **(values | fields)).write(path)


def test_a_checkpoint_gives_the_models_own_logits(checkpoint, small_model, pairs):
    images, tokens, _ = pairs
    with torch.inference_mode():
        expected = small_model(torch.tensor(images), torch.tensor(tokens)).numpy()
    threads = torch.get_num_threads()
    with open_engine(checkpoint, providers=CPU, threads=1) as engine:
        assert (engine.kind, engine.config, engine.file) == ("pytorch", small_model.config, checkpoint)
        logits = engine.infer(images, tokens)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert torch.get_num_threads() == threads
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_an_onnx_file_gives_its_logits(tmp_path, small_onnx, small_config, pairs, half):
    images, tokens, expected = pairs
    path = small_onnx(tmp_path / "model.onnx", half=half)
    with open_engine(path, threads=1) as engine:
        assert (engine.kind, engine.config) == ("onnx", small_config)
        assert engine.name == "model.onnx (ONNX Runtime, CPU)"
        logits = engine.infer(images, tokens)
        one = engine.infer(images[:1], tokens[:1])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=2e-3 if half else 1e-6)
    np.testing.assert_array_equal(one, logits[:1])


def test_inputs_need_not_be_contiguous_or_writable(onnx_file, pairs):
    images, tokens, expected = pairs
    view = np.asfortranarray(images)
    view.flags.writeable = False
    with open_engine(onnx_file) as engine:
        np.testing.assert_allclose(engine.infer(view, tokens), expected, rtol=1e-6)


BAD_INPUTS = [
    pytest.param(lambda x, t: (x / 255, t), r"image must be uint8 \[batch, 32, 32, 3\]", id="float-image"),
    pytest.param(lambda x, t: (x[0], t), r"image must be .*not uint8 \[32, 32, 3\]", id="no-batch-axis"),
    pytest.param(lambda x, t: (x[:, :16], t), r"image must be", id="small-image"),
    pytest.param(lambda x, t: (x.transpose(0, 3, 1, 2), t), r"image must be", id="channels-first"),
    pytest.param(lambda x, t: (x, t.astype("i4")), r"tokens must be int64 \[batch, 5\]", id="int32-tokens"),
    pytest.param(lambda x, t: (x, t[:, :4]), r"tokens must be", id="short-tokens"),
    pytest.param(lambda x, t: (x, t[:1]), "2 images but 1 sentences", id="one-sentence-missing"),
    pytest.param(lambda x, t: (x[:0], t[:0]), "batch of at least 1", id="empty-batch"),
    pytest.param(lambda x, t: (x.tolist(), t), "not a list", id="a-list"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_INPUTS)
def test_bad_inputs_are_refused(onnx_file, pairs, spoil, message):
    with open_engine(onnx_file) as engine, pytest.raises(UserError, match=message):
        engine.infer(*spoil(*pairs[:2]))


def test_a_closed_engine_says_so(onnx_file, pairs):
    engine = open_engine(onnx_file)
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.infer(*pairs[:2])


def pickle_of(path):
    torch.save({"weights": torch.zeros(3)}, path)


def foreign_onnx(path):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "foreign", [value], [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


BAD_FILES = [
    pytest.param("m.onnx", None, "does not exist", id="missing"),
    pytest.param("m.onnx", lambda p: p.mkdir(), "is a folder", id="a-folder"),
    pytest.param("m.onnx", lambda p: p.touch(), "is empty", id="empty"),
    pytest.param("m.pt", pickle_of, r"a \.safetensors, \.onnx or \.plan file", id="unknown-suffix"),
    pytest.param("m.safetensors", pickle_of, "no .safetensors file", id="pt-called-safetensors"),
    pytest.param("m.onnx", pickle_of, "no ONNX file", id="pt-called-onnx"),
    pytest.param("m.onnx", foreign_onnx, "was not exported by tfanet", id="foreign-onnx"),
    pytest.param("m.onnx", lambda p: p.write_bytes(b"text " * 99), "no ONNX file", id="text-called-onnx"),
    pytest.param("m.plan", pickle_of, "m.plan.json is missing", id="pt-called-plan"),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD_FILES)
def test_files_that_are_no_engine(tmp_path, name, make, message):
    path = tmp_path / name
    if make:
        make(path)
    with pytest.raises(UserError, match=message) as caught:
        open_engine(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_onnx_file_is_refused(onnx_file, share):
    data = onnx_file.read_bytes()
    onnx_file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="truncated or no ONNX"):
        open_engine(onnx_file)


def test_a_truncated_checkpoint_is_refused(tmp_path, checkpoint):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        open_engine(path)


def test_the_sidecar_has_the_config_where_the_onnx_file_lost_it(tmp_path, small_onnx, small_config):
    path = small_onnx(tmp_path / "model.onnx", metadata=False)
    write_sidecar(path, small_config, kind="onnx", compute_capabilities=None)
    with open_engine(path) as engine:
        assert engine.config == small_config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"providers": ["NoSuchProvider"]}, "no provider NoSuchProvider"), ({"providers": []}, "it has"),
     ({"threads": 0}, "threads must be at least 1")],
    ids=["unknown-provider", "no-provider", "no-threads"],
)  # fmt: skip
def test_bad_arguments(onnx_file, arguments, message):
    with pytest.raises(UserError, match=message):
        open_engine(onnx_file, **arguments)


@pytest.fixture
def rtx4090(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4090")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def test_a_plan_without_a_gpu(plan, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"needs an NVIDIA GPU of compute capability 8\.9.* has none"):
        open_engine(plan)


BAD_PLANS = [
    pytest.param({"compute_capabilities": ["12.0"]}, r"capability 12\.0, .*4090 has 8\.9", id="other-gpu"),
    pytest.param({"builder_version": "1.5.0.1"}, r"built by tensorrt_rtx 1\.5\.0\.1, and 1\.7", id="version"),
    pytest.param({"builder": "openvino"}, "built by 'openvino'", id="builder"),
    pytest.param({"kind": "onnx"}, "describes no plan", id="kind"),
    pytest.param({"file_sha256": "0" * 64}, "truncated or altered", id="altered"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_PLANS)
@pytest.mark.usefixtures("rtx4090")
def test_a_plan_that_does_not_fit_the_machine_names_the_rebuild(plan, small_config, fields, message):
    write_sidecar(plan, small_config, **fields)
    with pytest.raises(UserError, match=message + r".*tfanet-export trt --fp16"):
        open_engine(plan)


def test_a_plan_without_its_sidecar(plan):
    sidecar_path(plan).unlink()
    with pytest.raises(UserError, match=r"model\.plan\.json is missing"):
        open_engine(plan)


@pytest.mark.usefixtures("rtx4090")
def test_a_plan_that_the_runtime_refuses(plan):
    """TensorRT-RTX is real here: the file is no plan, whatever its sidecar says."""
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(UserError, match=r"tensorrt_rtx cannot open .*tfanet-export trt"):
        open_engine(plan)


class PretendContext:
    """Does with CPU memory what an execution context does with a GPU's: reads and writes at addresses."""

    def __init__(self):
        self.shapes, self.addresses = {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name):
        assert name == "mask_logits"
        return self.shapes["image"][:3]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        def at(name, kind, shape):
            data = (kind * math.prod(shape)).from_address(self.addresses[name])
            return np.frombuffer(data, kind).reshape(shape)

        images = at("image", ctypes.c_uint8, self.shapes["image"])
        tokens = at("tokens", ctypes.c_int64, self.shapes["tokens"])
        logits = at("mask_logits", ctypes.c_float, images.shape[:3])
        logits[:] = images.mean(-1) + tokens.sum(1)[:, None, None]
        return stream == 7


@pytest.fixture
def pretend_runtime(monkeypatch):
    engine = SimpleNamespace(
        create_execution_context=PretendContext,
        get_tensor_profile_shape=lambda name, profile: [(n, 32, 32, 3) for n in (1, 1, 2)],
    )
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: engine)
    real = pytest.importorskip("tensorrt_rtx")
    trt = SimpleNamespace(
        __name__=real.__name__,
        __version__=real.__version__,
        ILogger=real.ILogger,
        Runtime=lambda logger: runtime,
    )
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    monkeypatch.setattr(run_plan, "_check_machine", lambda file, sidecar: torch.device("cpu"))
    monkeypatch.setattr(run_plan, "load_backend", lambda name: (name, trt))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)


@pytest.mark.usefixtures("pretend_runtime")
def test_a_plan_is_run_with_the_right_shapes_and_addresses(plan, small_config, pairs):
    real = importlib.import_module("tensorrt_rtx")
    write_sidecar(plan, small_config, builder_version=real.__version__)
    images, tokens, expected = pairs
    with open_engine(plan) as engine:
        assert (engine.kind, engine.config, engine.batch) == ("plan", small_config, (1, 1, 2))
        np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)
        np.testing.assert_allclose(engine.infer(images[:1], tokens[:1]), expected[:1], rtol=1e-6)
        with pytest.raises(UserError, match="takes 1 to 2 images at once, not 3"):
            engine.infer(np.repeat(images[:1], 3, 0), np.repeat(tokens[:1], 3, 0))


def test_messages_of_the_runtime_are_kept_without_the_noise():
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt_api.make_logger(trt)
    logger.log(trt.ILogger.Severity.ERROR, "no kernel for this layer")
    logger.log(trt.ILogger.Severity.ERROR, "[checkMacros.cpp::catchCudaError::250] driver version")
    logger.log(trt.ILogger.Severity.WARNING, "slow")
    assert logger.errors == ["no kernel for this layer"]


def test_a_config_from_another_version_is_refused(plan):
    values = dataclasses.asdict(Sidecar.read(plan)) | {"config": {"image_size": 32}}
    Sidecar(**values).write(plan)
    with pytest.raises(UserError, match="does not fit this version"):
        open_engine(plan)
