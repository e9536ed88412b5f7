"""The training loop: one device, AdamW, gradient clipping, validation every epoch, resumable at any step."""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import Progress, TextColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tfanet.checkpoint import save_model
from tfanet.console import bar
from tfanet.errors import UserError, VerificationError
from tfanet.files import atomic_path
from tfanet.model import TFANet
from tfanet.training.losses import Loss, segmentation_loss
from tfanet.training.schedule import epoch_batches, learning_rate, parameter_groups, set_learning_rate
from tfanet.training.state import TrainingState, load_state

LOG_COLUMNS: tuple[str, ...] = (
    "step",
    "epoch",
    "loss",
    "bce",
    "dice",
    "rate",
    "images_per_second",
    "val_loss",
    "val_miou",
)


_FREE = ("save_every", "workers", "device")


@dataclass(frozen=True)
class TrainingOptions:
    """What a run does; a resumed run must share all but `save_every`, `workers` and `device`."""

    epochs: int = 4
    batch: int = 16
    rate: float = 1e-3
    """Peak learning rate; see `schedule.learning_rate`."""
    weight_decay: float = 1e-2
    warmup: int = 200
    """Steps of linear warm-up."""
    clip: float = 1.0
    """Largest L2 norm of the gradient."""
    seed: int = 0
    save_every: int = 500
    """Steps between two savings of the training state; an epoch's end saves too."""
    workers: int = 0
    """Processes that load data; 0 loads in the training process."""
    device: str = "cpu"
    half_weights: bool = False
    """Store model.safetensors in FP16: half the size; the training state stays FP32."""

    data: str = ""
    """Identity of the training expressions, so that a run is not resumed on others."""

    def fixed(self) -> dict[str, int | float | str]:
        """The options that a resumed run must share."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}


def train(
    model: TFANet,
    pairs: Dataset,
    validation: Dataset,
    out: Path,
    options: TrainingOptions,
    *,
    resume: bool = False,
) -> bool:
    """Train `model` in place and write model.safetensors, training.pt and log.csv into `out`.

    `pairs` and `validation` give the items of `tfanet.data.transforms.TrainingPairs`. Returns False when
    Ctrl-C or SIGTERM stopped the run: the step under way is finished and the state saved first. A loss,
    gradient or weight that is not finite raises `VerificationError`; the state of the last saving stays.
    """
    return _Run(model, pairs, validation, out, options).run(resume)


class _Run:
    def __init__(
        self, model: TFANet, pairs: Dataset, validation: Dataset, out: Path, options: TrainingOptions
    ) -> None:
        self.options, self.out = options, out
        self.device = torch.device(options.device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.pairs, self.validation = pairs, validation
        self.optimizer = torch.optim.AdamW(parameter_groups(model, options.weight_decay), lr=options.rate)
        count = len(pairs)  # pyright: ignore[reportArgumentType]
        if count < options.batch:
            raise UserError(f"{count} expressions are fewer than one batch of {options.batch}")
        self.per_epoch = count // options.batch
        self.total = self.per_epoch * options.epochs
        self.step = 0

    def run(self, resume: bool) -> bool:
        torch.manual_seed(self.options.seed)
        if resume:
            self._restore(load_state(self.out / "training.pt", self.model.config, self.options.fixed()))
        log = _Log(self.out / "log.csv", keep_until=self.step)
        with _stop_on_signal() as stop, bar(TextColumn("{task.fields[note]}")) as progress:
            task = progress.add_task("training", total=self.total, completed=self.step, note="")
            while self.step < self.total:
                self._epoch(log, progress, task, stop)
                if self.step == self.total or self.step % self.per_epoch == 0:
                    loss, miou = self._validate()
                    log.write(step=self.step, epoch=self.step // self.per_epoch, val_loss=loss, val_miou=miou)
                    progress.console.print(f"epoch {self.step // self.per_epoch}: validation mIoU {miou:.3f}")
                self._save()
                if stop.requested:
                    break
        return self.step == self.total

    def _epoch(self, log: _Log, progress: Progress, task, stop: _Stop) -> None:
        epoch, done = divmod(self.step, self.per_epoch)
        batches = epoch_batches(len(self.pairs), self.options.batch, self.options.seed, epoch, done)  # pyright: ignore
        self.model.train()
        started, start_step = time.perf_counter(), self.step
        for batch in self._loader(self.pairs, batches):
            rate = learning_rate(self.step, self.total, self.options.rate, self.options.warmup)
            set_learning_rate(self.optimizer, rate)
            loss = self._train_step(batch)
            self.step += 1
            speed = (self.step - start_step) * self.options.batch / (time.perf_counter() - started)
            values = {"loss": loss.total.item(), "bce": loss.bce.item(), "dice": loss.dice.item()}
            log.write(step=self.step, epoch=epoch, rate=rate, images_per_second=speed, **values)
            progress.update(
                task, completed=self.step, note=f"loss {values['loss']:.3f}  {speed:.0f} images/s"
            )
            if stop.requested:
                return
            if self.step % self.options.save_every == 0 and self.step % self.per_epoch:
                self._save()

    def _train_step(self, batch: dict[str, Tensor]) -> Loss:
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        loss = segmentation_loss(self.model(batch["image"], batch["tokens"]), batch["mask"])
        if not torch.isfinite(loss.total):
            raise VerificationError(f"the loss is {loss.total.item()} at step {self.step + 1}; lower --rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        if not torch.isfinite(norm):
            raise VerificationError(f"a gradient is not finite at step {self.step + 1}; lower --rate")
        self.optimizer.step()
        return loss

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float]:
        """Mean loss and mean IoU at the model's own S x S; `tfanet-eval` measures at the images' sizes."""
        self.model.eval()
        count = len(self.validation)  # pyright: ignore[reportArgumentType]
        batches = [list(range(i, min(i + 32, count))) for i in range(0, count, 32)]
        loss = iou = 0.0
        for batch in self._loader(self.validation, batches):
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            logits, truth = self.model(batch["image"], batch["tokens"]), batch["mask"] > 0
            mask = logits > 0
            union = (mask | truth).sum((1, 2)).clamp(min=1)
            iou += ((mask & truth).sum((1, 2)) / union).sum().item()
            loss += segmentation_loss(logits, batch["mask"]).total.item() * len(mask)
        return loss / count, iou / count

    def _loader(self, pairs: Dataset, batches: list[list[int]]) -> DataLoader:
        # Its own generator: the loader would draw from torch's, and a resumed run would go another way.
        return DataLoader(
            pairs, batch_sampler=batches, num_workers=self.options.workers, generator=torch.Generator()
        )

    def _save(self) -> None:
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise VerificationError(f"{name} is not finite after step {self.step}; lower --rate")
        TrainingState(
            config=self.model.config.to_json(),
            options=self.options.fixed(),
            step=self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        ).save(self.out / "training.pt")
        dtype = torch.float16 if self.options.half_weights else torch.float32
        notes = {"training": f"step {self.step} of {self.total}"}
        save_model(self.model, self.out / "model.safetensors", dtype=dtype, notes=notes)

    def _restore(self, state: TrainingState) -> None:
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        torch.set_rng_state(state.rng)
        if self.device.type == "cuda" and state.cuda_rng:
            torch.cuda.set_rng_state_all(state.cuda_rng)
        self.step = state.step


class _Log:
    """log.csv: a row a step, and a row with the validation figures after each epoch."""

    def __init__(self, path: Path, keep_until: int) -> None:
        kept = _rows_until(path, keep_until) if keep_until else []
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, LOG_COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        self.file = path.open("a", newline="", buffering=1)
        self.writer = csv.DictWriter(self.file, LOG_COLUMNS)

    def write(self, **values: float) -> None:
        row = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values.items()}
        self.writer.writerow(row)


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    """The whole rows up to `step`; a row that a crash tore has fewer columns or no number for its step."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdigit()]
    return [row for row in rows if int(row["step"]) <= step]


class _Stop:
    requested = False


@contextmanager
def _stop_on_signal() -> Iterator[_Stop]:
    """Turn Ctrl-C and SIGTERM into a request to stop after the current step."""
    stop = _Stop()

    def request(number: int, frame: object) -> None:
        stop.requested = True

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
