"""ONNX schemas and local functions of the domain `tfanet`, made from `tfanet_plugins.operations`.

In an ONNX file each operation is one node. The function of the same name, stored in the same file, is what a
runtime without a plugin runs. The scans have a body for each kind of runtime (`scan_bodies`,
`scan_bodies_gpu`); the graph around them is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, get_args

from tfanet_plugins.attach import schema_attributes
from tfanet_plugins.operations import (
    DOMAIN,
    DOMAIN_VERSION,
    OPERATIONS,
    Operation,
    ScanSizes,
    Target,
    function_proto,
)

if TYPE_CHECKING:
    import onnx


def function_protos(
    target: Target, *, states: int, longest: int, operations: Iterable[Operation] = OPERATIONS
) -> list[onnx.FunctionProto]:
    """All functions, with the bodies for `target`; append them to `ModelProto.functions`.

    `states` and `longest` are those of `ScanSizes`. Raises `ValueError` for an unknown target.
    """
    if target not in get_args(Target):
        raise ValueError(f"target must be one of {', '.join(get_args(Target))}, not {target!r}")
    sizes = ScanSizes(states, longest)
    return [function_proto(operation, _body(operation.bodies[target], sizes)) for operation in operations]


def _body(place: str, sizes: ScanSizes) -> str:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)(sizes)


def op_schema(operation: Operation) -> onnx.defs.OpSchema:
    """The schema of `operation`, with the attributes of a node that becomes a plugin."""
    from onnx.defs import OpSchema

    floats, wide = ["tensor(float16)", "tensor(float)"], ["tensor(float)"]
    result, _, result_kind = operation.output.partition(":")
    split = [item.partition(":") for item in operation.inputs]
    return OpSchema(
        operation.onnx_type,
        DOMAIN,
        DOMAIN_VERSION,
        operation.doc,
        inputs=[OpSchema.FormalParameter(n, kind or "T", is_homogeneous=kind != "W") for n, _, kind in split],
        outputs=[OpSchema.FormalParameter(result, result_kind or "T")],
        attributes=schema_attributes(),
        type_constraints=[
            ("T", floats, "the activations' type"),
            ("W", floats, "a parameter's type"),
            *([("wide", wide, "the result's type")] if result_kind else []),
        ],
    )


def register_schemas(operations: Iterable[Operation] = OPERATIONS) -> None:
    """Register the schemas with this process's `onnx`; does nothing the second time."""
    import onnx

    for operation in operations:
        if not onnx.defs.has(operation.onnx_type, domain=DOMAIN):
            onnx.defs.register_schema(op_schema(operation))
