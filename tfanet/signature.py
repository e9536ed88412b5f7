"""Names, dtypes and shapes of the deployed model's inputs and output, for export, engines and evaluation.

| name          | dtype   | shape          | range                                                        |
|---------------|---------|----------------|--------------------------------------------------------------|
| `image`       | uint8   | [B, S, S, 3]   | RGB 0..255, resized to S x S, not normalised                 |
| `tokens`      | int64   | [B, L]         | CLIP token ids with SOT and EOT, padded with 0               |
| `mask_logits` | float32 | [B, S, S]      | foreground minus background score; the mask is logits > 0    |

Only B is dynamic. S is `TFANetConfig.image_size`, L is `TFANetConfig.token_length`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfanet.config import TFANetConfig

BATCH = "batch"
MAX_BATCH = 1024
"""The largest batch of an exported graph."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype name and shape of one tensor; the batch axis is the string `BATCH`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    """The deployed model's inputs and outputs."""

    image: TensorSpec
    tokens: TensorSpec
    mask_logits: TensorSpec
    extra: tuple[TensorSpec, ...] = ()
    """Extra outputs, of a graph for debugging."""

    @property
    def inputs(self) -> tuple[TensorSpec, TensorSpec]:
        return self.image, self.tokens

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.mask_logits, *self.extra


def signature_of(config: TFANetConfig) -> Signature:
    """The signature of a model with this config."""
    size, length = config.image_size, config.token_length
    return Signature(
        image=TensorSpec("image", "uint8", (BATCH, size, size, 3)),
        tokens=TensorSpec("tokens", "int64", (BATCH, length)),
        mask_logits=TensorSpec("mask_logits", "float32", (BATCH, size, size)),
    )
