"""Training runs that take seconds: a small model with a narrow text tower, random images, few steps."""

from __future__ import annotations

import csv
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

import tfanet
from tfanet.config import TFANetConfig, preset
from tfanet.errors import UserError
from tfanet.text import TOWERS
from tfanet.training.options import TrainingOptions

# The embedding of CLIP's 49408 tokens is most of a small model: width 8 instead of 64.
TOWERS["narrow"] = TOWERS["tiny"] | {"width": 8, "layers": 1}

SMALL = preset(
    "tiny", image_size=32, vmamba_dims=(8, 8, 16, 16), vmamba_depths=(1, 1, 1, 1), text_tower="narrow"
)
SMALLEST = replace(SMALL, vmamba_dims=(4, 4, 4, 4), mlam_dim=4, decoder_dim=4, cssm_size=2)
WORDS = 128
OPTIONS = TrainingOptions(epochs=1, batch=4, lr=1e-3, warmup=0, ema=0.0)


class Squares(Dataset):
    """Random images with a mask of the left half; those in `broken` are unreadable."""

    def __init__(self, count: int = 8, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index in self.broken:
            raise UserError(f"image {index}.jpg is damaged")
        rng = torch.Generator().manual_seed(index)
        tokens = torch.zeros(17, dtype=torch.long)
        tokens[:3] = torch.tensor([WORDS - 2, index, WORDS - 1])
        mask = torch.zeros(32, 32, dtype=torch.uint8)
        mask[:, :16] = 1
        image = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=rng)
        return {"image": image, "tokens": tokens, "mask": mask}


class Signalling(Squares):
    """Sends SIGTERM to this process when the `at`-th sample is read; never if that is 0."""

    def __init__(self, count: int, at: int) -> None:
        super().__init__(count)
        self.at, self.served = at, 0

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.served += 1
        if self.served == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


def small_model(config: TFANetConfig = SMALL) -> tfanet.TFANet:
    torch.manual_seed(3)
    return tfanet.TFANet(config)


def smallest_model(config: TFANetConfig = SMALLEST) -> tfanet.TFANet:
    """With a vocabulary of `WORDS`: 15,000 parameters; its checkpoints do not fit models of `config`."""
    model = small_model(config)
    model.text.tower.token_embedding = nn.Embedding(WORDS, 8)
    return model


def log_rows(out: Path) -> list[dict[str, str]]:
    """The rows of a run's log.csv."""
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def losses(out: Path) -> list[float]:
    return [float(row["loss"]) for row in log_rows(out) if row["loss"]]


def subprocess_environment() -> dict[str, str]:
    """For scripts that import this module: on the CPU, with one thread."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
