"""AdamW's parameter groups, the learning rate over the steps, and who computes which pairs when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

_MODULES = {"vmamba": "backbone", "text": "text"}


def part_of(name: str) -> str:
    """The part of the model, of `options.PARTS`, that the parameter `name` belongs to."""
    return _MODULES.get(name.partition(".")[0], "rest")


def parameter_groups(model: nn.Module, weight_decay: float, rates: Mapping[str, float]) -> list[dict]:
    """Two groups a part: matrices and kernels with decay; the rest without.

    Without are vectors (norms, biases) and what a module's method `no_weight_decay` names, as in timm: names
    of parameters in that module.

    `rates` is the peak rate of each of `options.PARTS`; a group keeps its own as `peak`. Parameters without
    gradient are in no group, and no group is empty.
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
            plain = parameter.ndim <= 1 or name in excluded
            groups.setdefault((part_of(name), plain), []).append(parameter)
    return [
        {"params": found, "weight_decay": 0.0 if plain else weight_decay, "part": part, "peak": rates[part]}
        for (part, plain), found in groups.items()
    ]


def rate_factor(step: int, total: int, warmup: int, decay_from: float) -> float:
    """Share of the peak rate at `step` (from 0) of `total`: linear warm-up, constant, linear to zero.

    It falls from step `decay_from` on. The paper decays from epoch 25 of 50 and leaves the form open.
    """
    rise = min(1.0, (step + 1) / max(warmup, 1))
    fall = min(1.0, (total - step) / max(total - decay_from, 1))
    return min(rise, fall)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give each group its peak rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def epoch_batches(
    references: Sequence[Sequence[int]], batch: int, seed: int, epoch: int, start: int = 0
) -> list[list[int]]:
    """Index batches of one epoch from batch `start` on: a permutation of the references, one pair of each.

    `references[i]` are the indices of its pairs. Order and choice are fixed by seed and epoch. The last,
    smaller batch is dropped: BatchNorm would weigh it as much as a full one.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(references), generator=generator).tolist()
    draws = torch.rand(len(references), generator=generator, dtype=torch.float64).tolist()
    chosen = [references[place][int(draws[place] * len(references[place]))] for place in order]
    return [chosen[i : i + batch] for i in range(start * batch, len(chosen) - batch + 1, batch)]


def shares(batches: list[list[int]], parts: int, rank: int, world: int) -> Iterator[list[int]]:
    """What process `rank` of `world` computes: of every batch `parts` pieces, one after the other.

    Together the processes compute every pair of a batch once. A batch is a multiple of parts x world.
    """
    for batch in batches:
        size = len(batch) // (parts * world)
        for part in range(parts):
            first = (part * world + rank) * size
            yield batch[first : first + size]
