"""Distributed training: the processes that `torchrun` started, on any number of GPUs and machines."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as collective
from torch import Tensor, nn

from tfanet.errors import UserError


@dataclass(frozen=True)
class Processes:
    """This process's `rank` among `world` processes; all must call each method in the same order."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and prints messages."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


@contextmanager
def join_processes(device: str) -> Iterator[tuple[Processes, str]]:
    """Initialise `torch.distributed` under `torchrun`: the processes and this one's device, cuda:N or cpu.

    Without `torchrun` this is one process on `device`. Raises `UserError` if a machine has more processes
    than GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(), device
        return
    if device.startswith("cuda"):
        local_rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= count:
            raise UserError(
                f"at least {local_rank + 1} processes on a machine with {count} GPUs; start one per GPU"
            )
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    # Harmless: channels-last 1 x 1 kernels differ only in the strides of axes of length 1.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


class _SyncedOnCpu(nn.BatchNorm2d):
    """`nn.SyncBatchNorm` on the CPU, where PyTorch lacks it; every process must have the same batch size."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        count = input.numel() // input.shape[1] * dist.get_world_size()
        mean = collective.all_reduce(input.sum((0, 2, 3))) / count
        centred = input - mean[:, None, None]
        variance = collective.all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            momentum = self.momentum or 0.1
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / max(count - 1, 1), momentum)
        normal = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with BatchNorm over the batch of all processes; parameter names stay the same."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SyncedOnCpu
    return model
