"""Engines: three kinds of files behind one interface, and invalid files, which are refused in one line."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from small_engines import write_sidecar

import tfanet
from tfanet.checkpoint import save_model
from tfanet.errors import UserError
from tfanet_engines import open_engine, ort_session

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


def test_a_checkpoint_has_the_models_logits(checkpoint, small_model, pairs):
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
def test_logits_of_an_onnx_file(tmp_path, small_onnx, small_config, pairs, half):
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
    pytest.param(lambda x, t: (x, t[:1]), "2 images but 1 expressions", id="missing-expression"),
    pytest.param(lambda x, t: (x[:0], t[:0]), "batch of at least 1", id="empty-batch"),
    pytest.param(lambda x, t: (x.tolist(), t), "not a list", id="a-list"),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS)
def test_bad_inputs_are_refused(onnx_file, pairs, change, message):
    with open_engine(onnx_file) as engine, pytest.raises(UserError, match=message):
        engine.infer(*change(*pairs[:2]))


def test_a_closed_engine_raises_value_error(onnx_file, pairs):
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
    pytest.param("m.safetensors", pickle_of, "not a .safetensors file", id="pt-called-safetensors"),
    pytest.param("m.onnx", pickle_of, "not an ONNX file", id="pt-called-onnx"),
    pytest.param("m.onnx", foreign_onnx, "was not exported by tfanet", id="foreign-onnx"),
    pytest.param("m.onnx", lambda p: p.write_bytes(b"text " * 99), "not an ONNX file", id="text-called-onnx"),
    pytest.param("m.plan", pickle_of, "m.plan.json is missing", id="pt-called-plan"),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD_FILES)
def test_invalid_files_are_refused(tmp_path, name, make, message):
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
    with pytest.raises(UserError, match="truncated or not an ONNX"):
        open_engine(onnx_file)


def test_a_truncated_checkpoint_is_refused(tmp_path, checkpoint):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        open_engine(path)


def test_the_config_is_read_from_the_sidecar_if_the_onnx_file_has_none(tmp_path, small_onnx, small_config):
    path = small_onnx(tmp_path / "model.onnx", metadata=False)
    write_sidecar(path, small_config, kind="onnx", builder="torch.onnx")
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


class FakeProvider:
    """The wheel of TensorRT-RTX's provider and its devices in ONNX Runtime, with `gpus` GPUs."""

    def __init__(self, monkeypatch, gpus):
        self.registered, self.devices = [], [SimpleNamespace(ep_name=ort_session.CPU)]
        self.gpus = [SimpleNamespace(ep_name=ort_session.RTX) for _ in range(gpus)]
        wheel = SimpleNamespace(get_library_path=lambda: "libprovider.so")
        monkeypatch.setitem(sys.modules, ort_session.RTX_PLUGIN, wheel)
        monkeypatch.setattr(ort_session, "find_spec", lambda name: wheel)
        monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: self.devices)
        monkeypatch.setattr(onnxruntime, "register_execution_provider_library", self.register)

    def register(self, name, path):
        self.registered.append((name, path))
        self.devices = [*self.devices, *self.gpus]


RTX_FIRST = [ort_session.RTX, "CPUExecutionProvider"]


def test_the_rtx_provider_without_its_wheel(onnx_file, monkeypatch):
    monkeypatch.setattr(ort_session, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install onnxruntime-ep-nv-tensorrt-rtx"):
        open_engine(onnx_file, providers=RTX_FIRST)


def test_the_rtx_provider_without_a_gpu(onnx_file, monkeypatch):
    FakeProvider(monkeypatch, gpus=0)
    with pytest.raises(UserError, match="NvTensorRTRTXExecutionProvider supports no GPU"):
        open_engine(onnx_file, providers=RTX_FIRST)


def test_the_rtx_provider_is_registered_once_and_gets_one_gpu(onnx_file, monkeypatch):
    provider = FakeProvider(monkeypatch, gpus=2)
    added = []

    class Options:
        def __init__(self):
            self.log_severity_level = None

        def add_provider_for_devices(self, devices, options):
            added.append((devices, options))

    session = SimpleNamespace(get_providers=lambda: RTX_FIRST)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, options, enable_fallback: session)
    for _ in range(2):
        assert ort_session.open_session(onnx_file, RTX_FIRST) is session
    assert provider.registered == [(ort_session.RTX, "libprovider.so")]
    assert added == [(provider.gpus[:1], {})] * 2
