"""Marking plugin nodes, registering plugins without TensorRT, and counting the plugin layers of a network."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import onnx
import pytest
from onnx import parser

from tfanet.errors import UserError
from tfanet_plugins import (
    PLUGINS,
    mark_plugin_nodes,
    missing_plugin_layers,
    plugin_layers,
    register_all,
    use_plugin_bodies,
)
from tfanet_plugins.attach import schema_attributes

MODEL = """<ir_version: 10, opset_import: ["": 20, "tfanet": 1]>
graph (float[3] x, float[1] scale) => (float[3] y) {
    square = tfanet.ScaledSquare (x, scale)
    fourth = tfanet.Fourth (square, scale)
    y = Relu (fourth)
}
<domain: "tfanet", opset_import: ["": 20, "tfanet": 1]>
Fourth (x, scale) => (y) {
    once = tfanet.ScaledSquare (x, scale)
    shifted = Neg (once)
    y = tfanet.ScaledSquare (shifted, scale)
}"""
NAMES = ["ScaledSquare"]
ATTRIBUTES = {"plugin_namespace": b"tfanet", "plugin_version": b"1", "aot": 1}


@pytest.fixture
def model():
    made = parser.parse_model(MODEL)
    for node in made.graph.node:
        node.name = f"my_{node.op_type}"
    return made


def attributes(node: onnx.NodeProto) -> dict:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def test_plugin_nodes_are_marked_in_the_graph_and_in_function_bodies(model):
    mark_plugin_nodes(model, NAMES)
    assert [attributes(node) for node in model.graph.node] == [ATTRIBUTES, {}, {}]
    assert [attributes(node) for node in model.functions[0].node] == [ATTRIBUTES, {}, ATTRIBUTES]


@pytest.mark.parametrize(
    ("operations", "layers"),
    [
        ([], []),
        (["ScaledSquare"], ["my_ScaledSquare", "my_Fourth/ScaledSquare", "my_Fourth/ScaledSquare"]),
        (["Fourth"], ["my_Fourth"]),
        (["ScaledSquare", "Fourth"], ["my_ScaledSquare", "my_Fourth"]),
    ],
    ids=["no plugins", "in a body", "around a body", "both"],
)
def test_plugin_layers_of_graph_and_bodies(model, operations, layers):
    """A node with a plugin is one layer, whatever its body contains."""
    assert plugin_layers(model, operations) == layers


def test_marking_is_idempotent_and_keeps_other_attributes(model):
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("groups", 4))
    mark_plugin_nodes(model, NAMES)
    once = model.SerializeToString()
    mark_plugin_nodes(model, NAMES)
    assert model.SerializeToString() == once
    assert attributes(model.graph.node[0]) == {"groups": 4, **ATTRIBUTES}


def test_checker_accepts_marked_nodes_of_a_schema_with_the_attributes():
    """With a registered schema, as in the exporter's process, the checker rejects undeclared attributes."""
    from onnx.defs import OpSchema

    schema = OpSchema(
        "Marked",
        "tfanet",
        1,
        inputs=[OpSchema.FormalParameter("x", "tensor(float)")],
        outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
        attributes=schema_attributes(),
    )
    onnx.defs.register_schema(schema)
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20, "tfanet": 1]>
        graph (float[3] x) => (float[3] y) { y = tfanet.Marked (x) }"""
    )
    mark_plugin_nodes(model, ["Marked"])
    onnx.checker.check_model(model)
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("other", 1))
    with pytest.raises(onnx.checker.ValidationError, match="Unrecognized attribute: other"):
        onnx.checker.check_model(model)


def network(layers: dict[str, str]) -> SimpleNamespace:
    made = [SimpleNamespace(name=name, type=kind) for name, kind in layers.items()]
    return SimpleNamespace(num_layers=len(made), get_layer=made.__getitem__)


TENSORRT = SimpleNamespace(LayerType=SimpleNamespace(PLUGIN_V3="plugin"))


@pytest.mark.parametrize(
    ("layers", "missing"),
    [
        ({"a": "plugin", "b": "plugin", "relu": "activation"}, []),
        ({"a": "plugin", "(Unnamed) 7": "plugin"}, []),
        ({"a": "plugin", "b_mul": "elementwise", "b_add": "elementwise"}, ["b"]),
        ({"a": "elementwise", "b": "elementwise"}, ["a", "b"]),
    ],
    ids=["all", "one from a body", "one inlined", "same names, other layers"],
)
def test_nodes_that_did_not_become_plugins_are_returned(layers, missing):
    assert missing_plugin_layers(TENSORRT, network(layers), ["a", "b"]) == missing


@pytest.mark.parametrize(
    ("layers", "missing"),
    [
        ({"a_mul": "elementwise", "(Unnamed) 1": "plugin", "(Unnamed) 2": "plugin"}, ["a"]),
        ({"a": "plugin", "(Unnamed) 1": "plugin", "add": "elementwise"}, ["b/P", "b/Q"]),
        ({"a_mul": "elementwise", "(Unnamed) 1": "plugin"}, ["a", "b/P", "b/Q"]),
    ],
    ids=["node of the graph", "node of a body", "both"],
)
def test_all_layers_of_bodies_are_returned_if_one_is_missing(layers, missing):
    assert missing_plugin_layers(TENSORRT, network(layers), ["a", "b/P", "b/Q"]) == missing


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_every_operation_has_plugins(target):
    """A plugin for the operation, or for every node of its plugin body."""
    from onnx import ModelProto

    from tfanet_export.functions import function_protos

    model = ModelProto(functions=function_protos(target, states=1, longest=16_384))
    use_plugin_bodies(model)
    for function in model.functions:
        inner = {node.op_type for node in function.node if node.domain == "tfanet"}
        assert function.name in PLUGINS or (inner and inner <= set(PLUGINS)), function.name


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, r'plugins need the full TensorRT \(.*\); install it with: pip install "tfanet\[tensorrt\]"'),
        (SimpleNamespace(__version__="10.8.0.43"), "plugins need TensorRT 10.9 or later, not 10.8.0.43"),
        (SimpleNamespace(__version__="9.3.0"), "plugins need TensorRT 10.9 or later, not 9.3.0"),
    ],
    ids=["missing", "10.8", "9.3"],
)
def test_missing_or_old_tensorrt_is_one_line(monkeypatch, module, message):
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(UserError, match=f"^{message}$"):
        register_all()


def test_unsupported_gpu_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.0.106"))
    with pytest.raises(UserError, match=r"^unsupported compute capability 7\.5; supported: 8\.0, [^\n]*$"):
        register_all("7.5")


def test_import_does_not_import_torch_or_tensorrt():
    code = (
        "import sys, json; from tfanet_plugins import PLUGINS, mark_plugin_nodes, register_all;"
        "print(json.dumps([name for name in ('torch', 'triton', 'onnx', 'tensorrt') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
