"""Random inputs of the scans and of the model, the same in every run.

Scans: D channels of one direction, K = 4 directions, N states, R = D / 32 the rank of dt, L = H W tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from options import Shape
from torch import Tensor

from tfanet.ops.traversals import DIRECTIONS

if TYPE_CHECKING:
    from tfanet.config import TFANetConfig

EXPRESSION = "the small red circle to the left of the large blue square"


class Normal:
    """Draws normal numbers on a device, seed 0."""

    def __init__(self, device: torch.device) -> None:
        self._rng = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self._rng, device=self._rng.device).to(dtype)


def scan_inputs(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """u, delta [batch, K D, L]; A [K D, N]; B, C [batch, K, N, L]; D, delta_bias [K D].

    Steps and decays as in a trained model; A, D and delta_bias are FP32.
    """
    normal, rows = Normal(device), DIRECTIONS * shape.channels
    u, delta = (normal(batch, rows, shape.length, dtype=dtype) for _ in range(2))
    B, C = (normal(batch, DIRECTIONS, shape.states, shape.length, dtype=dtype) for _ in range(2))
    A = -torch.arange(1.0, shape.states + 1, device=device).repeat(rows, 1)
    return u, delta, A, B, C, normal(rows), normal(rows) - 4


def cross_inputs(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """x [batch, H, W, D]; p [batch, H, W, K (R + 2 N)]; dt_weight [K D, R]; others as in `scan_inputs`."""
    normal, rows = Normal(device), DIRECTIONS * shape.channels
    x = normal(batch, *shape.map, shape.channels, dtype=dtype)
    p = normal(batch, *shape.map, DIRECTIONS * (shape.rank + 2 * shape.states), dtype=dtype)
    weight = (normal(rows, shape.rank) * shape.rank**-0.5).to(dtype)
    A = -torch.arange(1.0, shape.states + 1, device=device).repeat(rows, 1)
    return x, p, weight, A, normal(rows), normal(rows) - 4


def model_inputs(config: TFANetConfig, batch: int = 1) -> dict[str, np.ndarray]:
    """image uint8 [batch, S, S, 3] of noise; tokens int64 [batch, L], all of `EXPRESSION`."""
    from tfanet.data.preprocess import tokenize

    size = config.image_size
    image = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    return {"image": image, "tokens": tokenize([EXPRESSION] * batch, config.token_length)}
