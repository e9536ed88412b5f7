"""Training steps of several configurations: first loss compared, then timed; a row of the report each."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from inputs import EXPRESSION, model_inputs
from kernel_choice import mamba_kernels, our_kernels, vectorised_paths
from remamber import remamber_steps
from report import Table, cell, failures, reason
from timing import Timer
from torch import Tensor

if TYPE_CHECKING:
    from tfanet.config import TFANetConfig
    from tfanet.model import TFANet
    from tfanet.training.options import TrainingOptions

Step = Callable[[], float]
"""One optimizer step, synchronised with the device; returns the loss."""
Kernels = Callable[[], AbstractContextManager[Any]]
"""Opens a context in which certain kernels compute the scans (`kernel_choice`)."""
OURS, REMAMBER = "ours", "ReMamber"
GOAL = 1.5
TOLERANCE = 2e-2
"""Largest relative difference of first losses: kernels and layouts round differently in half precision."""


@dataclass(frozen=True)
class Candidate:
    """One way to train."""

    name: str
    open: Callable[[], AbstractContextManager[Step]]
    comparable: bool = True
    """Whether its first loss must equal that of the others."""


@dataclass(frozen=True)
class Row:
    """Measurements of one candidate."""

    name: str
    seconds: list[float] = field(default_factory=list)
    """Of each step; empty if `why` has a reason."""
    loss: float | None = None
    memory_bytes: int | None = None
    wrong: bool = False
    why: str = ""


class PeakMemory:
    """Peak of the memory that PyTorch allocated on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    def reset(self) -> None:
        gc.collect()
        if self._on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def bytes(self) -> int | None:
        """Since `reset`; None on a CPU, where only the process has a peak."""
        return torch.cuda.max_memory_allocated() if self._on_gpu else None


def candidates(
    preset: str, batch: int, precision: str, device: torch.device, remamber: Path | None = None
) -> list[Candidate]:
    """All candidates, the paper's recipe with our kernels first; none is opened yet."""
    from tfanet.config import preset as preset_named
    from tfanet.model import TFANet
    from tfanet.training.options import find_recipe

    torch.manual_seed(0)
    # Stochastic depth saves no time here: dropped branches are computed and multiplied by zero.
    model = TFANet(preset_named(preset, drop_path=0.0))
    options = replace(
        find_recipe("paper-refcoco").options, batch=batch, precision=precision, device=str(device)
    )
    pairs = random_pairs(model.config, batch)
    ours = our_kernels if device.type == "cuda" else nullcontext

    def candidate(name: str, kernels: Kernels = ours, **changes: Any) -> Candidate:
        return Candidate(name, partial(tfanet_steps, model, replace(options, **changes), pairs, kernels))

    result = [
        candidate(OURS),
        candidate("channels first", channels_last=False),
        candidate("checkpointing", checkpointing=True),
        candidate("vectorised", vectorised_paths),
        candidate("mamba_ssm", partial(mamba_kernels, device)),
        candidate("torch.compile", compile=True),
    ]
    if remamber:
        steps = partial(remamber_steps, remamber, options, pairs, EXPRESSION)
        result.append(Candidate(REMAMBER, steps, comparable=False))
    return result


def random_pairs(config: TFANetConfig, batch: int) -> dict[str, Tensor]:
    """The inputs of `model_inputs` with masks of the left half, on the CPU."""
    pairs = {name: torch.from_numpy(x) for name, x in model_inputs(config, batch).items()}
    mask = torch.zeros(batch, config.image_size, config.image_size, dtype=torch.uint8)
    mask[:, :, : config.image_size // 2] = 1
    return pairs | {"mask": mask}


@contextmanager
def tfanet_steps(
    model: TFANet, options: TrainingOptions, pairs: dict[str, Tensor], kernels: Kernels
) -> Iterator[Step]:
    """Steps of `tfanet-train` on a copy of `model`."""
    from tfanet.training.processes import Processes
    from tfanet.training.steps import Stepper

    pinned = {name: x.pin_memory() if options.device != "cpu" else x for name, x in pairs.items()}
    with kernels():
        stepper = Stepper(deepcopy(model), options, Processes())
        yield lambda: stepper.step([pinned], stop=False).loss


def measure(candidate: Candidate, expected: float | None, timer: Timer, memory: PeakMemory) -> Row:
    """Take a first step, compare its loss with `expected`, and time more steps.

    If the candidate fails or its loss is off, the row has the reason in `why`.
    """
    memory.reset()
    try:
        with candidate.open() as step:
            loss = step()
            if expected is not None and not abs(loss - expected) <= TOLERANCE * abs(expected):
                why = f"the first loss is {loss:.4f}, not {expected:.4f}, so not timed"
                return Row(candidate.name, loss=loss, wrong=True, why=why)
            return Row(candidate.name, timer(step).seconds, loss, memory.bytes())
    except failures() as error:
        return Row(candidate.name, why=reason(error))


def table(rows: Sequence[Row], batch: int) -> Table:
    """One line per candidate; speedups are over the first."""
    columns = ["candidate", "median ms", "images/s", "x the first", "MiB", "loss", "status"]
    first = median(rows[0].seconds) if rows[0].seconds else None
    lines = []
    for row in rows:
        times = ["–"] * 4
        if row.seconds:
            middle = median(row.seconds)
            ratio = f"{first / middle:.2f}" if first else "–"
            memory = "–" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:.0f}"
            times = [f"{1e3 * middle:.1f}", f"{batch / middle:.2f}", ratio, memory]
        loss = "–" if row.loss is None else f"{row.loss:.4f}"
        lines.append([row.name, *times, loss, cell(row.why) or "ok"])
    return Table("Training steps", columns, lines)


def goal(rows: Sequence[Row]) -> str:
    """Whether our training has `GOAL` times the speed of ReMamber."""
    speeds = {row.name: 1 / median(row.seconds) for row in rows if row.seconds}
    if OURS not in speeds or REMAMBER not in speeds:
        return f"goal, {GOAL} times the speed of ReMamber: not measured"
    ratio = speeds[OURS] / speeds[REMAMBER]
    return f"goal, {GOAL} times the speed of ReMamber: {ratio:.2f}, {'met' if ratio >= GOAL else 'missed'}"


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for JSON, with the time of every step."""
    return [asdict(row) for row in rows]
