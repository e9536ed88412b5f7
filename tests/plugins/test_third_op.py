"""An operation that joins the domain with four files of its own: `third_op/`.

Here it goes the way of a model: PyTorch, one node in ONNX, its body in ONNX Runtime and TensorRT-RTX. Its
plugin is among those of `test_contract.py`.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scaled_square import scaled_square, scaled_square_loop
from scaled_square_onnx import NAME, function, schema

from tfanet_engines.trt_api import make_logger, parser_errors
from tfanet_plugins import mark_plugin_nodes, not_plugin_layers, plugin_layers


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([1.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(scaled_square(x - 1, self.scale))


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    """The model in ONNX, with the operation as one node, its body, and the mark for TensorRT."""
    from onnxscript.values import Opset

    if not onnx.defs.has(NAME, domain="tfanet"):
        onnx.defs.register_schema(schema())
    node = getattr(Opset("tfanet", 1), NAME)

    def translate(x, scale):
        return node(x, scale)

    program = torch.onnx.export(
        Model().eval(),
        (torch.zeros(2, 3),),
        dynamo=True,
        opset_version=20,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},),
        custom_translation_table={torch.ops.tfanet.scaled_square.default: translate},
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    model.functions.append(function())
    mark_plugin_nodes(model, [NAME])
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_torch_is_the_loop(dtype):
    x, scale = torch.linspace(-3, 3, 30).reshape(2, 3, 5).to(dtype), torch.tensor([0.5])
    torch.testing.assert_close(scaled_square(x, scale), scaled_square_loop(x, scale))


def test_the_operation_is_one_marked_node(exported):
    onnx.checker.check_model(exported)
    (node,) = [node for node in exported.graph.node if node.domain == "tfanet"]
    assert node.op_type == NAME
    assert {attribute.name for attribute in node.attribute} == {"plugin_namespace", "plugin_version", "aot"}


def test_onnx_runtime_runs_the_body(exported):
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    with torch.no_grad():
        expected = Model()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-6)


def test_tensorrt_rtx_takes_the_body_and_says_so(exported):
    trt = pytest.importorskip("tensorrt_rtx")
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(exported.SerializeToString()), parser_errors(parser)
    layers = plugin_layers(exported, [NAME])
    assert len(layers) == 1
    assert not_plugin_layers(trt, network, layers) == layers
    assert network.num_layers > 3
