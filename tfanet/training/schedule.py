"""AdamW's parameter groups and the learning rate over the steps."""

from __future__ import annotations

import torch
from torch import nn

NO_DECAY_NAMES = ("A_logs", "Ds", "gamma", "alpha", "embedding")
"""Parameters that weight decay would pull away from their meaning, whatever their rank."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices and kernels with decay; norms, biases and `NO_DECAY_NAMES` without."""
    decay, keep = [], []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or name.endswith("bias") or any(word in name for word in NO_DECAY_NAMES)
        (keep if plain else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def learning_rate(step: int, total: int, peak: float, warmup: int) -> float:
    """Rate at `step` (from 0) of `total`: linear warm-up, constant to the half, then linear to zero.

    The paper decays from epoch 25 of 50 and leaves the form open; the first steps are warmed up.
    """
    rise = min(1.0, (step + 1) / max(warmup, 1))
    fall = min(1.0, 2 * (total - step) / max(total, 1))
    return peak * min(rise, fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def epoch_batches(count: int, batch: int, seed: int, epoch: int, start: int = 0) -> list[list[int]]:
    """Index batches of one epoch from batch `start` on: a permutation of 0..count-1 fixed by seed and epoch.

    The last, smaller batch is dropped: BatchNorm would weigh it as much as a full one.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator).tolist()
    return [order[i : i + batch] for i in range(start * batch, count - batch + 1, batch)]
