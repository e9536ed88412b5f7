"""Small building blocks that several modules share. Feature maps are [B, C, H, W] everywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a feature map [B, C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [B, C, H, W] to `size`, pixel centres aligned (`align_corners=False`)."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def masked_mean(words: Tensor, valid: Tensor) -> Tensor:
    """Mean of word features [B, C, L] over the valid positions [B, L] (bool) -> [B, C]."""
    weight = valid.to(words.dtype)
    weight = weight / weight.sum(1, keepdim=True)  # SOT is always valid: the sum is at least 1
    return torch.einsum("bcl,bl->bc", words, weight)
