"""`scaled_square` in ONNX: its entry in the table of operations, and its function body."""

from __future__ import annotations

from tfanet_plugins.operations import Operation, ScanSizes

SCALED_SQUARE = Operation(
    "ScaledSquare",
    torch_name="scaled_square",
    doc="scale x^2",
    inputs=("x", "scale:W"),
    output="y",
    bodies=dict.fromkeys(("cpu", "gpu"), "scaled_square_onnx:body"),
    plugin_module="scaled_square_plugin",
)


def body(_: ScanSizes) -> str:
    return """
    x32 = Cast <to = 1> (x)
    scale32 = Cast <to = 1> (scale)
    square = Mul (x32, x32)
    scaled = Mul (square, scale32)
    y = CastLike (scaled, x)
    """
