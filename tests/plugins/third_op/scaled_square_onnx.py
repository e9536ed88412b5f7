"""`scaled_square` in ONNX: its schema, and its meaning in standard ops."""

from __future__ import annotations

import onnx
from onnx import parser
from onnx.defs import OpSchema

from tfanet_plugins.nodes import schema_attributes

NAME = "ScaledSquare"


def schema() -> OpSchema:
    return OpSchema(
        NAME,
        "tfanet",
        1,
        "scale x^2",
        inputs=[OpSchema.FormalParameter("x", "T"), OpSchema.FormalParameter("scale", "W")],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[(kind, ["tensor(float16)", "tensor(float)"], "") for kind in "TW"],
        attributes=schema_attributes(),
    )


def function() -> onnx.FunctionProto:
    return parser.parse_function(
        """<domain: "tfanet", opset_import: ["": 20]> ScaledSquare (x, scale) => (y) {
            x32 = Cast <to = 1> (x)
            scale32 = Cast <to = 1> (scale)
            square = Mul (x32, x32)
            scaled = Mul (square, scale32)
            y = CastLike (scaled, x)
        }"""
    )
