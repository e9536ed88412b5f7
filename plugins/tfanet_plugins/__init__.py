"""TensorRT plugins for the operations of `tfanet.ops`; their kernels are stored in the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfanet.lazy import lazy_attributes

if TYPE_CHECKING:
    from tfanet_plugins.attach import (
        mark_plugin_nodes,
        missing_plugin_layers,
        plugin_layers,
        register_all,
        use_plugin_bodies,
    )
    from tfanet_plugins.operations import PLUGINS

__all__ = [
    "PLUGINS",
    "mark_plugin_nodes",
    "missing_plugin_layers",
    "plugin_layers",
    "register_all",
    "use_plugin_bodies",
]

__getattr__ = lazy_attributes(
    __name__,
    dict.fromkeys(__all__, "tfanet_plugins.attach") | {"PLUGINS": "tfanet_plugins.operations"},
    renamed={"not_plugin_layers": "missing_plugin_layers"},
)
