"""Nodes that say they want a plugin, and what became of them."""

from __future__ import annotations

from types import SimpleNamespace

import onnx
import pytest
from onnx import parser

from tfanet_plugins import mark_plugin_nodes, not_plugin_layers, plugin_layers
from tfanet_plugins.nodes import schema_attributes

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
MARKS = {"plugin_namespace": b"tfanet", "plugin_version": b"1", "aot": 1}


@pytest.fixture
def model():
    made = parser.parse_model(MODEL)
    for node in made.graph.node:
        node.name = f"my_{node.op_type}"
    return made


def attributes(node: onnx.NodeProto) -> dict:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def test_nodes_with_a_plugin_are_marked_in_the_graph_and_in_bodies(model):
    mark_plugin_nodes(model, NAMES)
    assert [attributes(node) for node in model.graph.node] == [MARKS, {}, {}]
    assert [attributes(node) for node in model.functions[0].node] == [MARKS, {}, MARKS]


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
def test_layers_are_counted_where_tensorrt_will_look(model, operations, layers):
    """A node with a plugin is one layer, whatever its body has."""
    assert plugin_layers(model, operations) == layers


def test_marking_twice_is_marking_once_and_keeps_the_rest(model):
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("groups", 4))
    mark_plugin_nodes(model, NAMES)
    once = model.SerializeToString()
    mark_plugin_nodes(model, NAMES)
    assert model.SerializeToString() == once
    assert attributes(model.graph.node[0]) == {"groups": 4, **MARKS}


def test_a_schema_with_the_attributes_passes_the_checker():
    """Where ONNX knows a schema, as in the exporter's process, it refuses what is not declared there."""
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
def test_nodes_that_did_not_become_plugins_are_named(layers, missing):
    assert not_plugin_layers(TENSORRT, network(layers), ["a", "b"]) == missing


@pytest.mark.parametrize(
    ("layers", "missing"),
    [
        ({"a_mul": "elementwise", "(Unnamed) 1": "plugin", "(Unnamed) 2": "plugin"}, ["a"]),
        ({"a": "plugin", "(Unnamed) 1": "plugin", "add": "elementwise"}, ["b/P", "b/Q"]),
        ({"a_mul": "elementwise", "(Unnamed) 1": "plugin"}, ["a", "b/P", "b/Q"]),
    ],
    ids=["the node beside a body", "one of a body", "both"],
)
def test_layers_of_a_body_are_named_only_where_one_is_missing(layers, missing):
    assert not_plugin_layers(TENSORRT, network(layers), ["a", "b/P", "b/Q"]) == missing
