"""Attaching TensorRT plugins to the `tfanet` nodes of an ONNX file: mark, swap bodies, register, count.

A node of the domain `tfanet` has a function body in its file and may have a plugin in TensorRT. From 10.15
on, TensorRT takes the plugin if the node has the attribute `plugin_namespace` and that plugin is registered,
else the body. `aot = 1` selects the plugin's form whose kernel is stored in the engine. Runtimes without
plugins ignore these attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tfanet.errors import UserError
from tfanet_plugins.operations import DOMAIN, OPERATIONS, PLUGINS, function_proto
from tfanet_plugins.ptx import choose_capability

if TYPE_CHECKING:
    import onnx

ATTRIBUTES: dict[str, str | int] = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}

OLDEST_TENSORRT = (10, 9)
"""The first TensorRT whose engines can carry a kernel's PTX."""


def schema_attributes() -> list[onnx.defs.OpSchema.Attribute]:
    """`ATTRIBUTES` as an operation's schema has to declare them, or `onnx.checker` rejects marked nodes."""
    from onnx.defs import OpSchema

    kinds = {str: OpSchema.AttrType.STRING, int: OpSchema.AttrType.INT}
    return [
        OpSchema.Attribute(name, kinds[type(value)], required=False) for name, value in ATTRIBUTES.items()
    ]


def mark_plugin_nodes(model: onnx.ModelProto, operations: Iterable[str] = tuple(PLUGINS)) -> None:
    """Set `ATTRIBUTES` on every node of these `tfanet` operations, in place, in function bodies too."""
    marked = set(operations)
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in _tfanet_nodes(nodes):
            if node.op_type in marked:
                _mark(node)


def use_plugin_bodies(model: onnx.ModelProto) -> None:
    """Replace function bodies by bodies of plugins where the operation has one, and mark all plugin nodes.

    In place. Afterwards only a TensorRT with the plugins registered can parse `model`. Weights are not
    touched, so external ones need not be loaded.
    """
    bodies = {operation.onnx_type: operation for operation in OPERATIONS if operation.plugin_body}
    for function in model.functions:
        if function.domain == DOMAIN and function.name in bodies:
            operation = bodies[function.name]
            function.CopyFrom(function_proto(operation, operation.plugin_body or ""))
    mark_plugin_nodes(model)


def register_all(capability: str | None = None) -> list[str]:
    """Register every plugin with TensorRT's registry, as `tfanet::<operation>`; return the operations' names.

    Call it before TensorRT parses a file. `capability` is the GPU that kernels are compiled for, such as
    "8.9"; by default that of this machine. A second call changes only that. Raises `UserError` where TensorRT
    is missing or too old, and for a GPU that kernels cannot be compiled for.
    """
    try:
        import tensorrt  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:
        raise UserError(
            f'plugins need the full TensorRT ({error}); install it with: pip install "tfanet[tensorrt]"'
        ) from error
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < OLDEST_TENSORRT:
        raise UserError(f"plugins need TensorRT 10.9 or later, not {tensorrt.__version__}")
    choose_capability(capability)
    for module in PLUGINS.values():
        import_module(module)
    return list(PLUGINS)


def plugin_layers(model: onnx.ModelProto, operations: Iterable[str] = tuple(PLUGINS)) -> list[str]:
    """The name of each plugin layer that TensorRT has to make of the graph.

    It is the node's name, or `node/Operation` for a node in the body of a node that has no plugin itself.
    """
    known = set(operations)
    bodies = {function.name: function.node for function in model.functions if function.domain == DOMAIN}
    layers = []
    for node in _tfanet_nodes(model.graph.node):
        if node.op_type in known:
            layers.append(node.name)
        else:
            inner = (other.op_type for other in _tfanet_nodes(bodies.get(node.op_type, ())))
            layers += [f"{node.name}/{name}" for name in inner if name in known]
    return layers


def missing_plugin_layers(trt: ModuleType, network: Any, layers: Sequence[str]) -> list[str]:
    """The names among `layers` (see `plugin_layers`) that are not plugins in an `INetworkDefinition`.

    TensorRT renames layers from function bodies: where one of those is missing, all of them are returned.
    """
    network_layers = (network.get_layer(i) for i in range(network.num_layers))
    plugins = [layer.name for layer in network_layers if layer.type == trt.LayerType.PLUGIN_V3]
    if len(plugins) == len(layers):
        return []
    missing = [name for name in layers if name not in plugins]
    from_graph = [name for name in missing if "/" not in name]
    from_bodies = [name for name in missing if "/" in name]
    renamed = len(plugins) - (len(layers) - len(missing))
    return from_graph if renamed >= len(from_bodies) else missing


def _tfanet_nodes(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [node for node in nodes if node.domain == DOMAIN]


def _mark(node: onnx.NodeProto) -> None:
    from onnx import helper

    kept = [attribute for attribute in node.attribute if attribute.name not in ATTRIBUTES]
    del node.attribute[:]
    node.attribute.extend(kept + [helper.make_attribute(name, value) for name, value in ATTRIBUTES.items()])
