"""Adding an operation takes four files and one table entry: `third_op/`, from PyTorch to TensorRT-RTX.

`test_contract.py` tests its TensorRT plugin.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scaled_square import scaled_square, scaled_square_loop
from scaled_square_onnx import SCALED_SQUARE

from tfanet_engines.trt_api import make_logger, parser_errors
from tfanet_export.functions import function_protos, register_schemas
from tfanet_export.trace import translations
from tfanet_plugins import mark_plugin_nodes, missing_plugin_layers, plugin_layers
from tfanet_plugins.operations import OPSET


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([1.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(scaled_square(x - 1, self.scale))


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    """The model in ONNX: the operation as one node, its function body, and the attributes for TensorRT."""
    register_schemas([SCALED_SQUARE])
    program = torch.onnx.export(
        Model().eval(),
        (torch.zeros(2, 3),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},),
        custom_translation_table=translations([SCALED_SQUARE]),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    model.functions.extend(function_protos("cpu", states=1, longest=1, operations=[SCALED_SQUARE]))
    mark_plugin_nodes(model, SCALED_SQUARE.plugins)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_torch_operation_equals_the_loop(dtype):
    x, scale = torch.linspace(-3, 3, 30).reshape(2, 3, 5).to(dtype), torch.tensor([0.5])
    torch.testing.assert_close(scaled_square(x, scale), scaled_square_loop(x, scale))


def test_operation_is_one_marked_node(exported):
    onnx.checker.check_model(exported)
    (node,) = [node for node in exported.graph.node if node.domain == "tfanet"]
    assert node.op_type == "ScaledSquare"
    assert {attribute.name for attribute in node.attribute} == {"plugin_namespace", "plugin_version", "aot"}


def test_onnx_runtime_runs_the_function_body(exported):
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    with torch.no_grad():
        expected = Model()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-6)


def test_tensorrt_rtx_uses_the_function_body_and_the_plugin_is_reported_missing(exported):
    trt = pytest.importorskip("tensorrt_rtx")
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(exported.SerializeToString()), parser_errors(parser)
    layers = plugin_layers(exported, SCALED_SQUARE.plugins)
    assert len(layers) == 1
    assert missing_plugin_layers(trt, network, layers) == layers
    assert network.num_layers > 3
