"""TensorRT plugins for the operations of `tfanet.ops`, with kernels that travel inside the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfanet.lazy import lazy_attributes

if TYPE_CHECKING:
    from tfanet_plugins.bodies import use_plugin_bodies
    from tfanet_plugins.nodes import mark_plugin_nodes, not_plugin_layers, plugin_layers
    from tfanet_plugins.registry import PLUGINS, register_all

__all__ = [
    "PLUGINS",
    "mark_plugin_nodes",
    "not_plugin_layers",
    "plugin_layers",
    "register_all",
    "use_plugin_bodies",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "PLUGINS": "tfanet_plugins.registry",
        "mark_plugin_nodes": "tfanet_plugins.nodes",
        "not_plugin_layers": "tfanet_plugins.nodes",
        "plugin_layers": "tfanet_plugins.nodes",
        "register_all": "tfanet_plugins.registry",
        "use_plugin_bodies": "tfanet_plugins.bodies",
    },
)
