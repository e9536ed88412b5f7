"""A network of a few nodes with the deployed signature, which is built in a moment."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from fakes.tensorrt import random_pairs
from onnx import TensorProto, helper, numpy_helper
from small_engines import CONFIG, write_sidecar

from tfanet.files import sha256
from tfanet_engines import trust
from tfanet_engines.onnx_file import CONFIG_KEY, WEIGHTS_KEY


@pytest.fixture(scope="session")
def small_config():
    return CONFIG


@pytest.fixture
def small_onnx(small_config):
    """A function that writes an ONNX file that computes `fakes.tensorrt.expected_logits`."""

    def write(path, *, half=False, nodes=None, metadata=True):
        small = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        size, length = small_config.image_size, small_config.token_length
        weights = {
            "weight": np.full((3, 1), 1 / 3, np.float16 if half else np.float32),
            "last": np.array([-1]),
            "row": np.array([2]),
        }
        graph = helper.make_graph(
            nodes
            or [
                helper.make_node("Cast", ["image"], ["x"], to=small),
                helper.make_node("MatMul", ["x", "weight"], ["mixed"]),
                helper.make_node("Squeeze", ["mixed", "last"], ["grey"]),
                helper.make_node("ReduceSum", ["tokens", "last"], ["total"]),
                helper.make_node("Unsqueeze", ["total", "row"], ["total3"]),
                helper.make_node("Cast", ["total3"], ["shift"], to=small),
                helper.make_node("Add", ["grey", "shift"], ["sum"]),
                helper.make_node("Cast", ["sum"], ["mask_logits"], to=TensorProto.FLOAT),
            ],
            "small",
            [
                helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3]),
                helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", length]),
            ],
            [helper.make_tensor_value_info("mask_logits", TensorProto.FLOAT, ["batch", size, size])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        if metadata:
            helper.set_model_props(model, {CONFIG_KEY: small_config.to_json(), WEIGHTS_KEY: "ef" * 32})
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def onnx_file(tmp_path, small_onnx):
    return small_onnx(tmp_path / "model.onnx")


@pytest.fixture
def pairs(small_config):
    """Images uint8 [2, S, S, 3], tokens int64 [2, L] and the logits that `small_onnx` has for them."""
    return random_pairs(2, small_config, seed=1)


@pytest.fixture
def plan(tmp_path, small_config):
    """A file with the sidecar of a plan, in this user's list of built plans; only a fake can open it."""
    path = tmp_path / "model.plan"
    path.write_bytes(b"vtrt" * 100)
    write_sidecar(path, small_config)
    trust.remember(sha256(path))
    return path
