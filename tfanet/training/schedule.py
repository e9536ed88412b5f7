"""AdamW's parameter groups, the learning rate schedule, and the batches of an epoch and of a process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

_MODULES = {"vmamba": "backbone", "text": "text"}


def part_of(name: str) -> str:
    """The part of the model, of `options.PARTS`, that the parameter `name` belongs to."""
    return _MODULES.get(name.partition(".")[0], "rest")


def parameter_groups(model: nn.Module, weight_decay: float, lrs: Mapping[str, float]) -> list[dict]:
    """Two groups per part: matrices and kernels with decay; the rest without.

    Without decay are vectors (norms, biases) and what a module's method `no_weight_decay` returns, as in
    timm: names of parameters in that module.

    `lrs` maps each of `options.PARTS` to its peak learning rate, which its groups store as `peak`. Parameters
    that require no gradient are in no group, and no group is empty.
    """
    excluded = {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        if (names := getattr(module, "no_weight_decay", None))
        for name in names()
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_decay = parameter.ndim <= 1 or name in excluded
            groups.setdefault((part_of(name), no_decay), []).append(parameter)
    return [
        {"params": params, "weight_decay": 0.0 if no_decay else weight_decay, "part": part, "peak": lrs[part]}
        for (part, no_decay), params in groups.items()
    ]


def lr_factor(step: int, total: int, warmup: int, decay_from: float) -> float:
    """Learning rate at `step` (from 0) of `total`, 0..1 of its peak: linear warm-up, constant, linear decay.

    It decays to zero from step `decay_from` on. The paper decays from epoch 25 of 50; it gives no form.
    """
    rise = min(1.0, (step + 1) / max(warmup, 1))
    fall = min(1.0, (total - step) / max(total - decay_from, 1))
    return min(rise, fall)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def epoch_batches(
    references: Sequence[Sequence[int]], batch: int, seed: int, epoch: int, start: int = 0
) -> list[list[int]]:
    """Index batches of one epoch from batch `start` on: the references in random order, one sample of each.

    `references[i]` are the indices of its samples. Order and choice depend on seed and epoch only. The last,
    smaller batch is dropped: BatchNorm would weigh it as much as a full one.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(references), generator=generator).tolist()
    choice = torch.rand(len(references), generator=generator, dtype=torch.float64).tolist()
    chosen = [references[i][int(choice[i] * len(references[i]))] for i in order]
    return [chosen[i : i + batch] for i in range(start * batch, len(chosen) - batch + 1, batch)]


def rank_batches(batches: list[list[int]], parts: int, rank: int, world: int) -> Iterator[list[int]]:
    """The batches of process `rank` of `world`: `parts` of every batch, one after the other.

    Together the processes compute every sample of a batch once. The batch size must be a multiple of
    parts x world.
    """
    for batch in batches:
        size = len(batch) // (parts * world)
        for part in range(parts):
            first = (part * world + rank) * size
            yield batch[first : first + size]
