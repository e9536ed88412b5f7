"""Parameters and multiply-accumulates of a model by part, and the paper's Table 4 for comparison.

The model runs once on the meta device, which has shapes and no data, under PyTorch's `FlopCounterMode`. The
counter has formulas for convolutions and matrix products; those for `tfanet.ops` are here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from tfanet.config import VARIANTS, TFANetConfig, preset
from tfanet.model import TFANet

CONVENTION = (
    "MACs: multiply-accumulates in convolutions and matrix products, as fvcore counts, of one pair; a scan",
    "has 9 N + 1 per token and channel, as in VMamba's count. Norms, activations, resizing are not counted.",
)
PARTS = ("vmamba", "text", "plus", "fusion", "decoder")
"""The attributes of `TFANet`: encoder, CLIP, Knowledge Plus, Fusion and Intensification Stage."""

Shape = Sequence[int]


@dataclass(frozen=True)
class Count:
    """The counts of a model or a part of it."""

    parameters: int
    macs: int
    scans: int
    """The `macs` of the selective scans."""

    def __add__(self, other: Count) -> Count:
        return Count(self.parameters + other.parameters, self.macs + other.macs, self.scans + other.scans)


@dataclass(frozen=True)
class TableRow:
    """A row of the paper's Table 4 with its printed values."""

    name: str
    variant: str
    """The same model's row in Table 3, a key of `tfanet.config.VARIANTS`."""
    what: str
    parameters: float
    macs: float
    """The column "FLOPs", read as MACs: its DETRIS row has the decimals that fvcore gives for that model."""


TABLE_4 = (
    TableRow("a", "b", "baseline + CFM", 248.00e6, 201.55e9),
    TableRow("b", "c", "(a) + transformer", 258.57e6, 389.37e9),
    TableRow("c", "d", "(a) + MLAM", 262.98e6, 207.60e9),
    TableRow("f", "e", "(c) + WFDM, full", 268.46e6, 311.30e9),
)
"""TFANet's own rows; (d) and (e) are DETRIS and ASDA."""


def count_row(row: TableRow) -> Count:
    """The counts of preset `base` for a row of `TABLE_4`."""
    return total(count_parts(preset("base", **VARIANTS[row.variant])))


def total(parts: dict[str, Count]) -> Count:
    return sum(parts.values(), Count(0, 0, 0))


def count_parts(config: TFANetConfig) -> dict[str, Count]:
    """The counts of each of `PARTS` at batch 1; allocates almost no memory."""
    with torch.device("meta"):
        model = TFANet(config).eval()
        image = torch.zeros(1, config.image_size, config.image_size, 3, dtype=torch.uint8)
        tokens = torch.zeros(1, config.token_length, dtype=torch.int64)
    everything = FlopCounterMode(display=False, custom_mapping=FLOPS)
    scans = FlopCounterMode(display=False, custom_mapping=SCAN_FLOPS)
    with torch.inference_mode(), everything, scans:
        model(image, tokens)
    return {
        part: Count(
            parameters=sum(parameter.numel() for parameter in getattr(model, part).parameters()),
            macs=sum(_of_part(everything, part).values()) // 2,
            scans=sum(flops for op, flops in _of_part(scans, part).items() if op in SCAN_FLOPS) // 2,
        )
        for part in PARTS
    }


def _of_part(counter: FlopCounterMode, part: str) -> dict[object, int]:
    """FLOPs by operation in `TFANet.<part>`, from its outermost modules that were called."""
    counts = counter.get_flop_counts()
    inside = [path for path in counts if f"{path}.".startswith(f"TFANet.{part}.")]
    flops: dict[object, int] = {}
    for path in inside:
        if not any(path.startswith(f"{other}.") for other in inside):
            for op, number in counts[path].items():
                flops[op] = flops.get(op, 0) + number
    return flops


# As `FlopCounterMode` calls them: shapes of an operation's arguments -> FLOPs, two a multiply-accumulate.


def selective_scan_flops(
    u: Shape, delta: Shape, A: Shape, B: Shape, C: Shape, D: Shape, delta_bias: Shape, out_shape: Shape
) -> int:
    """u [batch, K*D, L], A [K*D, N]: nine per state and one for the skip, per token and channel."""
    return 2 * u[0] * u[1] * u[2] * (9 * A[1] + 1)


def cross_scan_flops(
    x: Shape, p: Shape, dt_weight: Shape, A: Shape, D: Shape, delta_bias: Shape, out_shape: Shape
) -> int:
    """x [batch, H, W, D], A [K*D, N]: the scans in K directions alone."""
    return 2 * x[0] * x[1] * x[2] * A[0] * (9 * A[1] + 1)


def cross_selective_scan_flops(
    x: Shape, p: Shape, dt_weight: Shape, A: Shape, D: Shape, delta_bias: Shape, out_shape: Shape
) -> int:
    """The scans and the product with dt_weight [K*D, R] that the operation contains."""
    projection = 2 * x[0] * x[1] * x[2] * dt_weight[0] * dt_weight[1]
    return projection + cross_scan_flops(x, p, dt_weight, A, D, delta_bias, out_shape)


def linear_cross_attention_flops(q: Shape, k: Shape, v: Shape, gamma: Shape, out_shape: Shape) -> int:
    """q [batch, h, d, M], k [batch, h, d, N]: K^T V and its product with Q; the norms are not counted."""
    return 2 * q[0] * q[1] * q[2] ** 2 * (q[3] + k[3])


SCAN_FLOPS: dict[object, Callable[..., int]] = {
    torch.ops.tfanet.selective_scan: selective_scan_flops,
    torch.ops.tfanet.cross_selective_scan: cross_scan_flops,
}
FLOPS = SCAN_FLOPS | {
    torch.ops.tfanet.cross_selective_scan: cross_selective_scan_flops,
    torch.ops.tfanet.linear_cross_attention: linear_cross_attention_flops,
}
