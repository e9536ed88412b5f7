"""Function bodies made of plugins, for TensorRT alone: ONNX files carry bodies that every runtime knows.

An operation of several kernels is several plugins. Which ones, and what goes from one to the next, is said by
a function that takes the place of the file's own before TensorRT's parser sees it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfanet_plugins.nodes import NAMESPACE, mark_plugin_nodes

if TYPE_CHECKING:
    import onnx

PLUGIN_BODIES = {
    "CrossSelectiveScan": """
    <domain: "tfanet", opset_import: ["": 20, "tfanet": 1]>
    CrossSelectiveScan (x, p, dt_weight, A, D, delta_bias) => (y) {
        decay, end = tfanet.CrossScanChunks (x, p, dt_weight, A, delta_bias)
        start = tfanet.CrossScanStarts (decay, end)
        rows = tfanet.CrossScanRows (x, p, dt_weight, A, D, delta_bias, start)
        y = tfanet.CrossScanColumns (x, p, dt_weight, A, D, delta_bias, start, rows)
    }""",
}
"""Operation -> its function as ONNX text; plugins and tensors in `cross_selective_scan`."""


def use_plugin_bodies(model: onnx.ModelProto) -> None:
    """Give the operations above these bodies, with their nodes marked as plugins, in place.

    Only a TensorRT with the plugins registered can parse `model` then. Weights are not touched, so those that
    lie in a file of their own need not be loaded.
    """
    from onnx import parser

    for function in model.functions:
        if function.domain == NAMESPACE and function.name in PLUGIN_BODIES:
            function.CopyFrom(parser.parse_function(PLUGIN_BODIES[function.name]))
    mark_plugin_nodes(model)
