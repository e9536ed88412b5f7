"""The table of the ONNX operations of the domain `tfanet`, one entry each.

| used by | for |
|---|---|
| `tfanet_export.functions` | schemas, function bodies |
| `tfanet_export.trace` | translation of the PyTorch operation to one ONNX node |
| `tfanet_plugins.attach` | TensorRT plugins |

Shapes and equations are in `tfanet.ops`. T, the type of the activations, is float16 or float32. A, D,
delta_bias and gamma (constraint W) may have either type whatever T is. All arithmetic is float32. The scans'
outputs (constraint wide) are float32 too, because trained states exceed the range of float16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import onnx

DOMAIN = "tfanet"
DOMAIN_VERSION = 1
OPSET = 20
"""The standard opset of the function bodies."""

Target = Literal["cpu", "gpu"]
"""The kind of runtime that a function body is written for."""

SCAN, CROSS_SCAN, ATTENTION = "SelectiveScan", "CrossSelectiveScan", "LinearCrossAttention"


class ScanSizes(NamedTuple):
    """The sizes of a model that function bodies depend on."""

    states: int
    """N of the scans: with one state a channel the cpu body has nothing to sum over."""
    longest: int
    """Tokens of the longest scan, which the gpu body is cut to; the cpu body takes any length."""


@dataclass(frozen=True)
class Operation:
    """One ONNX operation."""

    onnx_type: str
    """Must not be a name that ONNX has: TensorRT looks functions up by type, whatever the domain."""
    torch_name: str
    """Of the operation in `torch.ops.tfanet`."""
    doc: str
    inputs: tuple[str, ...]
    """`name`, or `name:constraint` where the type constraint is not T."""
    output: str
    """The same for the one output."""
    bodies: Mapping[Target, str]
    """`module:function` for each target; the function takes `ScanSizes` and returns the body as ONNX text."""
    plugin_module: str
    """Registers the operation's TensorRT plugins when it is imported."""
    plugin_body: str | None = None
    """For an operation of several kernels: a body of plugins, as ONNX text, for TensorRT alone."""

    @property
    def input_names(self) -> list[str]:
        return [name.partition(":")[0] for name in self.inputs]

    @property
    def plugins(self) -> list[str]:
        """Types of the nodes that become plugins: the operation itself, or the nodes of its plugin body."""
        if self.plugin_body is None:
            return [self.onnx_type]
        return re.findall(rf"\b{DOMAIN}\.(\w+)", self.plugin_body)


OPERATIONS = (
    Operation(
        SCAN,
        torch_name="selective_scan",
        doc="Selective scan over the last axis with grouped B and C, softplus inside, state in float32.",
        inputs=("u", "delta", "A:W", "B", "C", "D:W", "delta_bias:W"),
        output="y:wide",
        bodies={
            "cpu": "tfanet_export.scan_bodies:selective_scan_cpu",
            "gpu": "tfanet_export.scan_bodies_gpu:selective_scan_gpu",
        },
        plugin_module="tfanet_plugins.selective_scan",
    ),
    Operation(
        CROSS_SCAN,
        torch_name="cross_selective_scan",
        doc="Sum of the selective scans of a channels-last map by rows, by columns, and both reversed.",
        inputs=("x", "p", "dt_weight", "A:W", "D:W", "delta_bias:W"),
        output="y:wide",
        bodies={
            "cpu": "tfanet_export.scan_bodies:cross_selective_scan_cpu",
            "gpu": "tfanet_export.scan_bodies_gpu:cross_selective_scan_gpu",
        },
        plugin_module="tfanet_plugins.cross_selective_scan",  # its docstring has the shapes in between
        plugin_body="""
        decay, end = tfanet.CrossScanChunks (x, p, dt_weight, A, delta_bias)
        start = tfanet.CrossScanStarts (decay, end)
        rows = tfanet.CrossScanRows (x, p, dt_weight, A, D, delta_bias, start)
        y = tfanet.CrossScanColumns (x, p, dt_weight, A, D, delta_bias, start, rows)
        """,
    ),
    Operation(
        ATTENTION,
        torch_name="linear_cross_attention",
        doc="Linear cross-attention XNorm(Q) XNorm(K^T V), channels first, sums in float32.",
        inputs=("q", "k", "v", "gamma:W"),
        output="out",
        bodies=dict.fromkeys(("cpu", "gpu"), "tfanet_export.attention_body:linear_cross_attention"),
        plugin_module="tfanet_plugins.linear_cross_attention",
    ),
)

PLUGINS = {plugin: operation.plugin_module for operation in OPERATIONS for plugin in operation.plugins}
"""ONNX node type -> module that registers its TensorRT plugin when it is imported."""


def function_proto(operation: Operation, body: str) -> onnx.FunctionProto:
    """The ONNX function of `operation` with `body`, ONNX text that computes the output from the inputs."""
    from onnx import parser

    output = operation.output.partition(":")[0]
    head = f"{operation.onnx_type} ({', '.join(operation.input_names)}) => ({output})"
    opsets = f'["": {OPSET}, "{DOMAIN}": {DOMAIN_VERSION}]'
    function = parser.parse_function(f'<domain: "{DOMAIN}", opset_import: {opsets}>\n{head} {{{body}}}')
    function.doc_string = operation.doc
    return function
