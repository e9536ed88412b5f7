"""Plugin bodies: they compute the same operation, and the rest of the model is unchanged."""

from __future__ import annotations

import onnx
import pytest
import torch
from cross_scan_parts import PARTS

from tfanet.ops.cross_selective_scan import cross_selective_scan_loop
from tfanet_export.functions import function_protos
from tfanet_plugins import plugin_layers, use_plugin_bodies
from tfanet_plugins.attach import ATTRIBUTES

GRAPH = """<ir_version: 10, opset_import: ["": 20, "tfanet": 1]>
graph (float x, float p, float w, float A, float D, float bias) => (float y) {
    scanned = tfanet.CrossSelectiveScan (x, p, w, A, D, bias)
    y = Relu (scanned)
}"""


@pytest.fixture(params=["cpu", "gpu"])
def model(request) -> onnx.ModelProto:
    """A model of one node with the function body that an exported file has for this target."""
    made = onnx.parser.parse_model(GRAPH)
    made.graph.node[0].name = "scan_7"
    made.functions.extend(function_protos(request.param, states=1, longest=100))
    return made


def body(model: onnx.ModelProto) -> onnx.FunctionProto:
    (function,) = [function for function in model.functions if function.name == "CrossSelectiveScan"]
    return function


def inputs(height: int, width: int, dim: int = 3, rank: int = 2, states: int = 2) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return [
        normal(2, height, width, dim), normal(2, height, width, 4 * (rank + 2 * states)),
        normal(4 * dim, rank), -normal(4 * dim, states).exp(), normal(4 * dim), normal(4 * dim),
    ]  # fmt: skip


def run(function: onnx.FunctionProto, values: list[torch.Tensor]) -> torch.Tensor:
    """Evaluate the body with the reference implementation of each node."""
    tensors = dict(zip(function.input, values, strict=True))
    for node in function.node:
        outputs = PARTS[node.op_type](*(tensors[name] for name in node.input))
        tensors.update(zip(node.output, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
    return tensors[function.output[0]]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 8), (13, 7)], ids=["pixel", "chunk", "13 x 7"])
def test_plugin_body_computes_the_operation(model, height, width):
    use_plugin_bodies(model)
    values = inputs(height, width)
    expected = cross_selective_scan_loop(*values)
    torch.testing.assert_close(run(body(model), values), expected, rtol=1e-10, atol=1e-10)


def test_nodes_of_the_plugin_body_are_marked(model):
    use_plugin_bodies(model)
    assert [node.op_type for node in body(model).node] == list(PARTS)
    for node in body(model).node:
        assert node.domain == "tfanet"
        assert {attribute.name for attribute in node.attribute} == set(ATTRIBUTES)


def test_plugin_bodies_keep_arguments_and_the_rest_of_the_model(model):
    before = onnx.ModelProto.FromString(model.SerializeToString())
    use_plugin_bodies(model)
    assert (body(model).input, body(model).output) == (body(before).input, body(before).output)
    assert model.graph == before.graph
    others = [function.name for function in model.functions if function.name != "CrossSelectiveScan"]
    assert others == [function.name for function in before.functions if function.name != "CrossSelectiveScan"]
    once = model.SerializeToString()
    use_plugin_bodies(model)
    assert model.SerializeToString() == once


def test_cross_scan_node_is_four_plugin_layers(model):
    use_plugin_bodies(model)
    assert plugin_layers(model) == [f"scan_7/{part}" for part in PARTS]
