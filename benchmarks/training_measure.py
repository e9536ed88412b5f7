"""Ways to take the same training steps, and how they are checked, timed and weighed."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import torch
from engines_measure import Timer
from gpu_cases import SENTENCE, our_kernels, scan_kernel, vectorised_paths
from gpu_measure import NotHere, failures, first_line
from report import Table
from torch import Tensor

from tfanet.errors import UserError, VerificationError
from tfanet.ops import dispatch

if TYPE_CHECKING:
    from tfanet.model import TFANet
    from tfanet.training.options import TrainingOptions

Step = Callable[[], float]
"""One optimizer step, waited for; returns the loss."""
Kernels = Callable[[], AbstractContextManager[Any]]
"""While it is open, its kernels compute the scans."""
OURS, REMAMBER = "ours", "ReMamber"
GOAL = 1.5
TOLERANCE = 2e-2
"""Largest difference of first losses, as a share: kernels and layouts round differently in half precision."""


@dataclass(frozen=True)
class Rival:
    """One way to train."""

    name: str
    opened: Callable[[], AbstractContextManager[Step]]
    comparable: bool = True
    """Whether its first loss must be that of the others."""


@dataclass(frozen=True)
class Row:
    """What was found for one rival."""

    name: str
    seconds: list[float] = field(default_factory=list)
    """Of each step; empty where `why` says why there are none."""
    loss: float | None = None
    memory_bytes: int | None = None
    wrong: bool = False
    why: str = ""


class Gauge(Protocol):
    """The peak of a device's memory since `reset`; None where it cannot be said."""

    def reset(self) -> None: ...

    def peak(self) -> int | None: ...


class GpuGauge:
    def reset(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        return torch.cuda.max_memory_allocated()


class CpuGauge:
    """A process has one peak, whatever ran in it."""

    def reset(self) -> None:
        gc.collect()

    def peak(self) -> int | None:
        return None


def rivals(
    preset: str, batch: int, precision: str, device: torch.device, remamber: Path | None = None
) -> list[Rival]:
    """Every way to train here, ours with the paper's recipe first; none is opened yet."""
    from tfanet.config import preset as preset_named
    from tfanet.model import TFANet
    from tfanet.training.options import find_recipe

    torch.manual_seed(0)
    # Stochastic depth saves no time here: what it leaves out is computed, too, and times zero.
    model = TFANet(preset_named(preset, drop_path=0.0))
    options = replace(
        find_recipe("paper-refcoco").options, batch=batch, precision=precision, device=str(device)
    )
    pairs = random_pairs(batch, model.config.image_size, model.config.token_length)
    kernels = our_kernels if device.type == "cuda" else nullcontext

    def ours(
        name: str, kernels: Callable[[], AbstractContextManager[Any]] = kernels, **changes: Any
    ) -> Rival:
        return Rival(name, partial(opened, model, replace(options, **changes), pairs, kernels))

    found = [
        ours(OURS),
        ours("channels first", channels_last=False),
        ours("checkpointing", checkpointing=True),
        ours("vectorised", vectorised_paths),
        ours("mamba_ssm", partial(mamba_kernels, device)),
        ours("torch.compile", compile=True),
    ]
    if remamber:
        found.append(Rival(REMAMBER, partial(theirs, remamber, options, pairs), comparable=False))
    return found


def random_pairs(batch: int, size: int, length: int) -> dict[str, Tensor]:
    """Pictures of noise with masks of the left half, all with one sentence, in the host's memory."""
    from tfanet.data.preprocess import tokenize

    rng = torch.Generator().manual_seed(0)
    mask = torch.zeros(batch, size, size, dtype=torch.uint8)
    mask[:, :, : size // 2] = 1
    return {
        "image": torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=rng),
        "tokens": torch.as_tensor(tokenize([SENTENCE] * batch, length)),
        "mask": mask,
    }


@contextmanager
def opened(
    model: TFANet,
    options: TrainingOptions,
    pairs: dict[str, Tensor],
    kernels: Kernels,
) -> Iterator[Step]:
    """Steps of `tfanet-train` on a copy of `model`."""
    from tfanet.training.processes import Processes
    from tfanet.training.steps import Stepper

    pinned = {name: x.pin_memory() if options.device != "cpu" else x for name, x in pairs.items()}
    with kernels():
        stepper = Stepper(deepcopy(model), options, Processes())
        yield lambda: stepper.step([pinned], stop=False).loss


@contextmanager
def mamba_kernels(device: torch.device) -> Iterator[None]:
    """While the block runs, the scans are `mamba_ssm`'s, between traversals in PyTorch."""
    if device.type != "cuda":
        raise NotHere("it needs CUDA")
    if dispatch.mamba_scan() is None:
        raise NotHere("it is not installed")
    with scan_kernel("mamba-ssm"):
        yield


@contextmanager
def theirs(folder: Path, options: TrainingOptions, pairs: dict[str, Tensor]) -> Iterator[Step]:
    """Steps as ReMamber's `main.py --model-ema` takes them, by the code in `folder`.

    The code reads its VMamba checkpoint from `pretrain` in its own folder, and CLIP from the cache of
    transformers. Normalisation of the pictures, which its data set does, is left out of the time.
    """
    device = torch.device(options.device)
    image = pairs["image"].permute(0, 3, 1, 2).contiguous().float() / 255
    mask = pairs["mask"][:, None].float()
    with _imports_from(folder):
        from timm.utils.cuda import NativeScaler
        from timm.utils.model_ema import ModelEma

        segmenter = importlib.import_module("model.conv_segmenter")
        model, new = segmenter.ReMamber_Conv(img_size=image.shape[-1], model_size="base")
        model.to(device)
        rates = Namespace(lr=5e-5, lr_decoder=5e-5, lr_backbone=2.5e-5, lr_vssm=2.5e-5, weight_decay=1e-4)
        optimizer = importlib.import_module("model.utils").create_optimizer(rates, model, new)
        ema = ModelEma(model, decay=options.ema)
        half = device.type == "cuda" and options.precision != "fp32"
        scaler = NativeScaler() if half else None

        def step() -> float:
            model.train()
            picture, truth = (x.to(device, non_blocking=True) for x in (image, mask))
            with torch.autocast(device.type, torch.float16, enabled=half):
                loss = model(picture, [SENTENCE] * len(picture), truth)[2]
            value = loss.item()
            optimizer.zero_grad()
            if scaler is not None:
                scaler(loss, optimizer, parameters=model.parameters())
            else:
                loss.backward()
                optimizer.step()
            ema.update(model)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return value

        yield step


@contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Work and import in `folder`; what was imported from it is forgotten afterwards."""
    if not (folder / "model" / "conv_segmenter.py").is_file():
        raise UserError(f"{folder} is no checkout of ReMamber: model/conv_segmenter.py is missing")
    before, place, folder = set(sys.modules), Path.cwd(), folder.resolve()
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(place)
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("model", "vmamba_model"):
                del sys.modules[name]


def measure(rival: Rival, expected: float | None, timer: Timer, gauge: Gauge) -> Row:
    """Take a first step, hold its loss against `expected`, and time more; a failure is a row that says so."""
    gauge.reset()
    try:
        with rival.opened() as step:
            loss = step()
            if expected is not None and not abs(loss - expected) <= TOLERANCE * abs(expected):
                why = f"the first loss is {loss:.4f}, not {expected:.4f}, so not timed"
                return Row(rival.name, loss=loss, wrong=True, why=why)
            return Row(rival.name, timer(step), loss, gauge.peak())
    except NotHere as reason:
        return Row(rival.name, why=str(reason))
    except (*failures(), UserError, VerificationError) as error:
        return Row(rival.name, why=first_line(error))


def table(rows: Sequence[Row], batch: int) -> Table:
    """A line a rival; ratios are of its speed to that of the first."""
    columns = ["rival", "median ms", "pictures/s", "x the first", "MiB", "loss", "ran"]
    first = median(rows[0].seconds) if rows[0].seconds else None
    lines = []
    for row in rows:
        cells = ["–"] * 4
        if row.seconds:
            middle = median(row.seconds)
            ratio = f"{first / middle:.2f}" if first else "–"
            memory = "–" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:.0f}"
            cells = [f"{1e3 * middle:.1f}", f"{batch / middle:.2f}", ratio, memory]
        loss = "–" if row.loss is None else f"{row.loss:.4f}"
        lines.append([row.name, *cells, loss, row.why.replace("|", "/") or "yes"])
    return Table("Training steps", columns, lines)


def goal(rows: Sequence[Row]) -> str:
    """What became of the goal: `GOAL` times the speed of ReMamber."""
    speeds = {row.name: 1 / median(row.seconds) for row in rows if row.seconds}
    if OURS not in speeds or REMAMBER not in speeds:
        return f"goal, {GOAL} times the speed of ReMamber: not measured"
    ratio = speeds[OURS] / speeds[REMAMBER]
    return f"goal, {GOAL} times the speed of ReMamber: {ratio:.2f}, {'met' if ratio >= GOAL else 'missed'}"


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for JSON, with every timed step."""
    return [asdict(row) for row in rows]
