"""Plugin layers for the tests: types and sizes in the network, and the operation's oracle."""

from __future__ import annotations

from typing import Any

BATCH = -1
"""The dynamic batch in a shape, 1 to 8."""


def layer(
    name: str,
    oracle: str,
    inputs: list[tuple[str, tuple[int, ...]]],
    *outputs: str,
    batches: tuple[int, ...] = (1, 8),
    negative: tuple[int, ...] = (),
    capability: str = "8.9",
) -> dict[str, Any]:
    """One layer of a request; `negative` are indices of inputs with negative values."""

    def at(batch: int) -> list[list[int]]:
        return [[batch if size == BATCH else size for size in sizes] for _, sizes in inputs]

    ranges = zip(inputs, at(1), at(8), strict=True)
    return {
        "name": name,
        "oracle": oracle,
        "capability": capability,
        "negative": list(negative),
        "types": [*(type for type, _ in inputs), *outputs],
        "inputs": [{"type": type, "min": low, "opt": low, "max": high} for (type, _), low, high in ranges],
        "cases": [at(batch) for batch in batches],
    }


def scaled_square(x: str, sizes: tuple[int, ...] = (3, 50), scale: str = "FLOAT", **options: Any) -> dict:
    inputs = [(x, (BATCH, *sizes)), (scale, (1,))]
    return layer("ScaledSquare", "scaled_square:scaled_square_loop", inputs, x, **options)


def scan(
    x: str, groups: int, dim: int, states: int, length: int, parameter: str = "FLOAT", **options: Any
) -> dict:
    per_channel, per_group = (BATCH, groups * dim, length), (BATCH, groups, states, length)
    inputs = [
        (x, per_channel),
        (x, per_channel),
        (parameter, (groups * dim, states)),
        (x, per_group),
        (x, per_group),
        (parameter, (groups * dim,)),
        (parameter, (groups * dim,)),
    ]
    oracle = "tfanet.ops.selective_scan:selective_scan_loop"
    return layer("SelectiveScan", oracle, inputs, "FLOAT", negative=(2,), **options)


def attention(
    x: str, heads: int, width: int, queries: int, keys: int, gamma: str = "HALF", **options: Any
) -> dict:
    keys_shape = (x, (BATCH, heads, width, keys))
    inputs = [(x, (BATCH, heads, width, queries)), keys_shape, keys_shape, (gamma, (heads,))]
    oracle = "tfanet.ops.linear_cross_attention:linear_cross_attention_loop"
    return layer("LinearCrossAttention", oracle, inputs, x, **options)


CROSS_SCAN_INPUTS = {
    "CrossScanChunks": ("x", "p", "dt_weight", "A", "delta_bias"),
    "CrossScanStarts": ("start", "start"),
    "CrossScanRows": ("x", "p", "dt_weight", "A", "D", "delta_bias", "start"),
    "CrossScanColumns": ("x", "p", "dt_weight", "A", "D", "delta_bias", "start", "y"),
}


def cross_scan(
    name: str, x: str, height: int, width: int, dim: int, rank: int, states: int, parameter: str = "FLOAT",
    **options: Any,
) -> dict:  # fmt: skip
    """A layer of one of the 2-D scan's plugins."""
    tensors = {
        "x": (x, (BATCH, height, width, dim)),
        "p": (x, (BATCH, height, width, 4 * (rank + 2 * states))),
        "dt_weight": (x, (4 * dim, rank)),
        "A": (parameter, (4 * dim, states)),
        "D": (parameter, (4 * dim,)),
        "delta_bias": (parameter, (4 * dim,)),
        "start": ("FLOAT", (BATCH, 4, -(-height * width // 32), states, dim)),
        "y": ("FLOAT", (BATCH, height, width, dim)),
    }
    inputs = [tensors[tensor] for tensor in CROSS_SCAN_INPUTS[name]]
    outputs = ["FLOAT"] * (2 if name == "CrossScanChunks" else 1)
    options["negative"] = tuple(i for i, tensor in enumerate(CROSS_SCAN_INPUTS[name]) if tensor == "A")
    oracle = f"cross_scan_parts:cross_scan_{name.removeprefix('CrossScan').lower()}"
    return layer(name, oracle, inputs, *outputs, **options)
