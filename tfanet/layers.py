"""Layers that several modules share. Feature maps are [B, C, H, W] between modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def channels_last(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W, C]: a view of a map in channels-last memory format, else a copy."""
    return x.permute(0, 2, 3, 1).contiguous()


def channels_first(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, C, H, W], a view."""
    return x.permute(0, 3, 1, 2)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a feature map [B, C, H, W]; the result is channels last in memory."""

    def forward(self, input: Tensor) -> Tensor:
        return channels_first(super().forward(channels_last(input)))


class Pointwise(nn.Conv2d):
    """A 1x1 convolution of maps [B, H, W, C], as a matrix product."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.flatten(1), self.bias)


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
