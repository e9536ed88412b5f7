"""The meaning of the domain `tfanet`, written in standard ONNX ops: schemas and local functions.

    SelectiveScan(u, delta, A, B, C, D, delta_bias) -> y              tfanet.ops.selective_scan
    CrossSelectiveScan(x, p, dt_weight, A, D, delta_bias) -> y        tfanet.ops.cross_selective_scan
    LinearCrossAttention(q, k, v, gamma) -> out                       tfanet.ops.linear_cross_attention

The modules named on the right have the tables of shapes and the equations. In an ONNX file each operation
stays one node; the function of the same name, stored in the same file, is what a runtime without a plugin
runs. T, the type of the activations, is float16 or float32; A, D, delta_bias and gamma may have either type
whatever T is. All arithmetic is float32. The scans' outputs are float32 too, for trained states pass the
range of float16; LinearCrossAttention's has the type of q.

The nodes carry the attributes by which TensorRT prefers a plugin to the body (`tfanet_plugins.nodes`).

The scans have a body for each kind of runtime (`scan_bodies`, `scan_bodies_gpu`); the graph around them is
the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from tfanet_export.scan_bodies import cross_selective_scan_cpu, selective_scan_cpu
from tfanet_export.scan_bodies_gpu import cross_selective_scan_gpu, selective_scan_gpu
from tfanet_plugins.nodes import schema_attributes

if TYPE_CHECKING:
    import onnx

DOMAIN = "tfanet"
DOMAIN_VERSION = 1
OPSET = 20
"""The standard opset that the bodies are written in."""

Target = Literal["cpu", "gpu"]

SCAN, CROSS_SCAN, ATTENTION = "SelectiveScan", "CrossSelectiveScan", "LinearCrossAttention"
_SIGNATURES = {
    SCAN: (("u", "delta", "A:W", "B", "C", "D:W", "delta_bias:W"), "y:wide"),
    CROSS_SCAN: (("x", "p", "dt_weight", "A:W", "D:W", "delta_bias:W"), "y:wide"),
    ATTENTION: (("q", "k", "v", "gamma:W"), "out"),
}
"""Inputs and output of each operation; after a colon the type constraint where it is not T."""
_DOCS = {
    SCAN: "Selective scan over the last axis with grouped B and C, softplus inside, state in float32.",
    CROSS_SCAN: "Sum of the selective scans of a channels-last map by rows, by columns, and both reversed.",
    ATTENTION: "Linear cross-attention XNorm(Q) XNorm(K^T V), channels first, sums in float32.",
}


def function_protos(target: Target, *, states: int, longest: int) -> list[onnx.FunctionProto]:
    """All functions, with the scans' bodies for `target`; append them to `ModelProto.functions`.

    `states` is N of the model's scans: with one state a channel the cpu body has nothing to sum over.
    `longest` is the number of tokens of the longest scan, which the gpu body is cut to; the cpu body takes
    any. Raises `ValueError` for an unknown target.
    """
    if target not in get_args(Target):
        raise ValueError(f"target must be one of {', '.join(get_args(Target))}, not {target!r}")
    cpu = target == "cpu"
    bodies = {
        SCAN: selective_scan_cpu(states) if cpu else selective_scan_gpu(longest),
        CROSS_SCAN: cross_selective_scan_cpu(states) if cpu else cross_selective_scan_gpu(),
        ATTENTION: _attention(),
    }
    return [_function(name, body) for name, body in bodies.items()]


def op_schemas() -> list[onnx.defs.OpSchema]:
    """Schemas of all operations, for `onnx.checker`, onnxscript and the PyTorch exporter."""
    return [_schema(name, *signature) for name, signature in _SIGNATURES.items()]


def register_schemas() -> None:
    """Make the schemas known to this process's `onnx`; does nothing the second time."""
    import onnx

    for schema in op_schemas():
        if not onnx.defs.has(schema.name, domain=DOMAIN):
            onnx.defs.register_schema(schema)


def _schema(name: str, inputs: tuple[str, ...], output: str) -> onnx.defs.OpSchema:
    from onnx.defs import OpSchema

    floats, wide = ["tensor(float16)", "tensor(float)"], ["tensor(float)"]
    result, _, result_kind = output.partition(":")
    split = [item.partition(":") for item in inputs]
    return OpSchema(
        name,
        DOMAIN,
        DOMAIN_VERSION,
        _DOCS[name],
        inputs=[OpSchema.FormalParameter(n, kind or "T", is_homogeneous=kind != "W") for n, _, kind in split],
        outputs=[OpSchema.FormalParameter(result, result_kind or "T")],
        attributes=schema_attributes(),
        type_constraints=[
            ("T", floats, "the activations' type"),
            ("W", floats, "a parameter's type"),
            *([("wide", wide, "the result's type")] if result_kind else []),
        ],
    )


def _function(name: str, body: str) -> onnx.FunctionProto:
    from onnx import parser

    inputs, output = _SIGNATURES[name]
    head = f"{name} ({', '.join(x.partition(':')[0] for x in inputs)}) => ({output.partition(':')[0]})"
    opsets = f'["": {OPSET}, "{DOMAIN}": {DOMAIN_VERSION}]'
    function = parser.parse_function(f'<domain: "{DOMAIN}", opset_import: {opsets}>\n{head} {{{body}}}')
    function.doc_string = _DOCS[name]
    return function


def _attention() -> str:
    from tfanet.ops.xnorm import EPS

    return f"""
    eps = Constant <value_float = {EPS}> ()
    embedding_of_q = Constant <value_ints = [-2]> ()
    embedding_of_v = Constant <value_ints = [-1]> ()
    head_axes = Constant <value_ints = [1, 2]> ()
    q32 = Cast <to = 1> (q)
    k32 = Cast <to = 1> (k)
    v32 = Cast <to = 1> (v)
    gamma32 = Cast <to = 1> (gamma)
    scale = Unsqueeze (gamma32, head_axes)

    vT = Transpose <perm = [0, 1, 3, 2]> (v32)
    kv = MatMul (k32, vT)
    {_xnorm("kv", "embedding_of_v")}
    {_xnorm("q32", "embedding_of_q")}
    kvT = Transpose <perm = [0, 1, 3, 2]> (kv_xnorm)
    out32 = MatMul (kvT, q32_xnorm)
    out = CastLike (out32, q)
    """


def _xnorm(x: str, axes: str) -> str:
    """`{x}_xnorm` = scale x / sqrt(sum of x^2 over `axes` + eps)."""
    return f"""
    {x}_square = Mul ({x}, {x})
    {x}_sum = ReduceSum <keepdims = 1> ({x}_square, {axes})
    {x}_sum_eps = Add ({x}_sum, eps)
    {x}_norm = Sqrt ({x}_sum_eps)
    {x}_unit = Div ({x}, {x}_norm)
    {x}_xnorm = Mul ({x}_unit, scale)
    """
