"""Options that several benchmarks share, and how their values are checked. Imports no PyTorch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tfanet.errors import UserError

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = "225:2048,900:1024,3600:512,14400:256"
"""The scans of the four stages of a 480 x 480 image: tokens and channels of one of four directions."""

OutOption = Annotated[Path, typer.Option(help="Folder of the report.", show_default="benchmarks/results")]
ShapesOption = Annotated[str, typer.Option(help="LENGTH:CHANNELS of one direction, comma-separated.")]
BatchesOption = Annotated[str, typer.Option(help="Batch sizes, comma-separated.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads [one per usable core].")]
LimitOption = Annotated[
    float, typer.Option(help="Seconds for one measurement; slow candidates run fewer times.")
]


@dataclass(frozen=True)
class Shape:
    """Sizes of a scan in SS2D: 4 directions, rank of dt = channels / 32."""

    length: int
    """Tokens of a sequence, which are the pixels of a map."""
    channels: int
    """Of one direction."""
    states: int = 1

    def __str__(self) -> str:
        return f"{self.length} x {self.channels}"

    @property
    def map(self) -> tuple[int, int]:
        """Height and width, as close to each other as `length` allows."""
        height = next(n for n in range(math.isqrt(self.length), 0, -1) if self.length % n == 0)
        return height, self.length // height

    @property
    def rank(self) -> int:
        return max(1, self.channels // 32)


def parse_shapes(text: str) -> list[Shape]:
    """Comma-separated LENGTH:CHANNELS pairs. Raises `UserError` if one is malformed."""
    shapes = []
    for item in text.split(","):
        length, _, channels = item.strip().partition(":")
        if not (length.isdecimal() and channels.isdecimal()) or int(length) < 1 or int(channels) < 1:
            raise UserError(f"--shapes takes LENGTH:CHANNELS, comma-separated, not {item!r}")
        shapes.append(Shape(int(length), int(channels)))
    return shapes


def parse_batches(text: str) -> list[int]:
    """Comma-separated batch sizes. Raises `UserError` if one is not a positive integer."""
    items = [item.strip() for item in text.split(",")]
    if not all(item.isdecimal() and int(item) > 0 for item in items):
        raise UserError(f"--batches takes whole numbers above 0, comma-separated, not {text!r}")
    return [int(item) for item in items]


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> int:
    """The number of CPU threads, by default one per usable core. Raises `UserError` if it is below 1."""
    if threads is not None and threads < 1:
        raise UserError(f"--threads must be at least 1, not {threads}")
    return threads or usable_cores()


def require_cuda(instead: str) -> None:
    """Raises `UserError` without a CUDA device; `instead` says what runs without one."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"no CUDA device here; {instead}")
