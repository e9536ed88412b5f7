"""The training loss. The paper gives none; this one combines the losses of LAVT and ReMamber.

    loss = BCE(weights 0.9 background, 1.1 foreground) + dice

On a two-class head, cross-entropy equals BCE of the score difference, which is what the model returns. The
weights are LAVT's; ReMamber adds dice, which gives small objects more weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BACKGROUND_WEIGHT, FOREGROUND_WEIGHT = 0.9, 1.1


class Loss(NamedTuple):
    """Scalars; `total` is what is minimised."""

    total: Tensor
    bce: Tensor
    dice: Tensor


def segmentation_loss(logits: Tensor, mask: Tensor) -> Loss:
    """logits float [B, S, S], mask uint8 [B, S, S] in {0, 1} -> scalars, averaged over the batch."""
    target = mask.to(logits.dtype)
    weight = torch.where(mask > 0, FOREGROUND_WEIGHT, BACKGROUND_WEIGHT)
    bce = F.binary_cross_entropy_with_logits(logits, target, weight=weight)
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum((1, 2))
    size = probability.sum((1, 2)) + target.sum((1, 2))
    dice = (1 - (2 * overlap + 1) / (size + 1)).mean()  # the 1 keeps the loss of an empty mask finite
    return Loss(bce + dice, bce, dice)
