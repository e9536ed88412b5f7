"""Which nodes of an ONNX file TensorRT is to run as plugins, and whether it did.

A node of the domain `tfanet` has a function body in its file and may have a plugin in TensorRT. From 10.15
on, TensorRT takes the plugin if the node says `plugin_namespace` and such a plugin is registered, else the
body. `aot = 1` asks for the form whose kernel lies in the engine. Runtimes without plugins ignore all three.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tfanet_plugins.registry import PLUGINS

if TYPE_CHECKING:
    import onnx

NAMESPACE = "tfanet"
ATTRIBUTES: dict[str, str | int] = {"plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": 1}


def schema_attributes() -> list[onnx.defs.OpSchema.Attribute]:
    """The attributes above as an operation's schema has to declare them, or `onnx.checker` refuses them."""
    from onnx.defs import OpSchema

    kinds = {str: OpSchema.AttrType.STRING, int: OpSchema.AttrType.INT}
    return [
        OpSchema.Attribute(name, kinds[type(value)], required=False) for name, value in ATTRIBUTES.items()
    ]


def mark_plugin_nodes(model: onnx.ModelProto, operations: Iterable[str] = tuple(PLUGINS)) -> None:
    """Give every node of these `tfanet` operations the attributes above, in place, in function bodies too."""
    wanted = set(operations)
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in _ours(nodes):
            if node.op_type in wanted:
                _mark(node)


def plugin_layers(model: onnx.ModelProto, operations: Iterable[str] = tuple(PLUGINS)) -> list[str]:
    """A name for each plugin layer that the graph is to become.

    It is the node's name, or `node/Operation` for one in the body of a node that has no plugin itself.
    """
    wanted = set(operations)
    bodies = {function.name: function.node for function in model.functions if function.domain == NAMESPACE}
    layers = []
    for node in _ours(model.graph.node):
        if node.op_type in wanted:
            layers.append(node.name)
        else:
            inner = (other.op_type for other in _ours(bodies.get(node.op_type, ())))
            layers += [f"{node.name}/{name}" for name in inner if name in wanted]
    return layers


def _ours(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [node for node in nodes if node.domain == NAMESPACE]


def _mark(node: onnx.NodeProto) -> None:
    from onnx import helper

    kept = [attribute for attribute in node.attribute if attribute.name not in ATTRIBUTES]
    del node.attribute[:]
    node.attribute.extend(kept + [helper.make_attribute(name, value) for name, value in ATTRIBUTES.items()])


def not_plugin_layers(trt: ModuleType, network: Any, layers: Sequence[str]) -> list[str]:
    """The names among `layers` (see `plugin_layers`) that are no plugins in an `INetworkDefinition`.

    TensorRT has its own names for layers from function bodies: where one of those is missing, all of them are
    named.
    """
    found = (network.get_layer(i) for i in range(network.num_layers))
    plugins = [layer.name for layer in found if layer.type == trt.LayerType.PLUGIN_V3]
    if len(plugins) == len(layers):
        return []
    missing = [name for name in layers if name not in plugins]
    own = [name for name in missing if "/" not in name]
    of_bodies = [name for name in missing if "/" in name]
    unnamed = len(plugins) - (len(layers) - len(missing))
    return own if unnamed >= len(of_bodies) else missing
