"""The training loop: any number of processes, validation after every epoch, resumable at any step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TextColumn
from torch.utils.data import Dataset

from tfanet.checkpoint import save_model
from tfanet.console import bar, note, say
from tfanet.errors import UserError, VerificationError
from tfanet.files import write_text
from tfanet.model import TFANet
from tfanet.training.evaluate import evaluate
from tfanet.training.loader import describe, load_batches, loader_deaths_as_user_errors
from tfanet.training.options import TrainingOptions
from tfanet.training.processes import Processes
from tfanet.training.records import Records
from tfanet.training.schedule import epoch_batches, lr_factor, rank_batches, set_lr
from tfanet.training.signals import StopRequest, stop_on_signal
from tfanet.training.state import TrainingState, load_state
from tfanet.training.steps import Stepper, StepResult, choose_precision

DRAWN = 6
"""Validation samples whose predictions are drawn."""

_TEMPORARY = (
    ".training-*.pt", ".*-*.safetensors", ".log-*.csv", ".splits-*.csv", ".curves-*.png",
    ".predictions-*.png", ".tmp??????",
)  # fmt: skip
"""Temporary names of a run's files (`tfanet.files.atomic_path`); the last is safetensors' own."""


def train(
    model: TFANet,
    samples: Dataset,
    validation: Dataset,
    out: Path,
    options: TrainingOptions,
    *,
    resume: Path | None = None,
    processes: Processes | None = None,
    splits: Mapping[str, Dataset] | None = None,
    references: Sequence[Sequence[int]] | None = None,
) -> bool:
    """Train `model` in place and write into `out`: model.safetensors, best.safetensors, training.pt, records.

    Args:
        model: contains the saved weights afterwards: the moving average if there is one.
        samples, validation: items as those of `tfanet.data.transforms.TrainingPairs`.
        resume: the training state to resume from.
        splits: data sets to evaluate at the end, in one table.
        references: lists of indices into `samples`; an epoch trains one random sample of each. Without, an
            epoch trains every sample.

    Returns False if Ctrl-C or SIGTERM stopped the run: it finishes the current step and saves the state
    first. An evaluation is cancelled, and repeated when the run is resumed. More faults than the options
    allow raise `VerificationError` (a non-finite loss or gradient) or `UserError` (unreadable samples, a
    loader process that dies); the last saved state stays.
    """
    references = references or [[i] for i in range(len(samples))]  # pyright: ignore[reportArgumentType]
    run = _Run(model, samples, validation, out, options, processes or Processes(), references)
    with stop_on_signal() as stop, loader_deaths_as_user_errors():
        return run.run(resume, splits or {}, stop)


class _Run:
    def __init__(
        self,
        model: TFANet,
        samples: Dataset,
        validation: Dataset,
        out: Path,
        options: TrainingOptions,
        processes: Processes,
        references: Sequence[Sequence[int]],
    ) -> None:
        self.options = replace(
            options, precision=choose_precision(options.precision, torch.device(options.device))
        )
        self.out, self.processes, self.config = out, processes, model.config
        self.samples, self.validation, self.references = samples, validation, references
        count = len(references)
        multiple = options.accumulate * processes.world
        if options.batch % multiple:
            raise UserError(
                f"a batch of {options.batch} cannot be divided among {processes.world} processes in "
                f"{options.accumulate} parts each; it must be a multiple of {multiple}"
            )
        if count < options.batch:
            raise UserError(f"{count} samples an epoch are fewer than one batch of {options.batch}")
        self.stepper = Stepper(model, self.options, processes)
        self.per_epoch = count // options.batch
        self.total = self.per_epoch * options.epochs
        decay_epoch = options.epochs / 2 if options.decay_from is None else options.decay_from
        self.decay_from = decay_epoch * self.per_epoch
        self.step = self.validated = self.skipped = 0
        self.best = -1.0
        self.unreadable: set[int] = set()

    def run(self, resume: Path | None, splits: Mapping[str, Dataset], stop: StopRequest) -> bool:
        torch.manual_seed(self.options.seed + self.processes.rank)
        if resume:
            self._restore(load_state(resume, self.config, self.options.fixed()))
        first = self.processes.first
        if first:
            self._warn_of_long_warmup()
            for stale in (path for pattern in _TEMPORARY for path in self.out.glob(pattern)):
                stale.unlink(missing_ok=True)  # of a run that was killed while writing
        records = Records(self.out, self.step, self.validated) if first else None
        with bar(TextColumn("{task.fields[note]}")) if first else nullcontext() as progress:
            if progress:
                progress.add_task("training", total=self.total, completed=self.step, note="")
            finished = self._train(records, progress, stop)
            if records:
                records.close()
            self.stepper.model.load_state_dict(self.stepper.weights.state_dict())
            table = self._evaluate_splits(splits, progress, stop) if finished else None
        if first and table:
            write_text(self.out / "splits.csv", "".join(f"{','.join(row)}\n" for row in table))
            for split, *values in table:
                say(f"{split:<8}" + "".join(f"{value:>13}" for value in values))
        return table is not None

    def _warn_of_long_warmup(self) -> None:
        warmup = self.options.warmup
        if warmup > self.total:
            note(
                f"the warm-up of {warmup} steps is longer than the run of {self.total}: the learning rate "
                f"reaches {self.total / warmup:.0%} of --lr at most; give a shorter --warmup"
            )

    def _train(self, records: Records | None, progress: Progress | None, stop: StopRequest) -> bool:
        """Every epoch and its validation; returns whether all are done."""
        stopped = False
        while not stopped:
            epoch, step_in_epoch = divmod(self.step, self.per_epoch)
            if step_in_epoch == 0 and epoch > self.validated:
                self._save()  # before validation, which may take long
                if not self._validate(epoch, records, progress, stop):
                    return False
                self._save()
            if self.step == self.total:
                return True
            stopped = self._epoch(records, progress, stop)
        self._save()
        return False

    def _evaluate_splits(
        self, splits: Mapping[str, Dataset], progress: Progress | None, stop: StopRequest
    ) -> list[list[str]] | None:
        """A table of mIoU and oIoU of the saved weights on each split, in percent; None if stopped."""
        table = [["split", "expressions", "mIoU", "oIoU"]]
        for name, samples in splits.items():
            evaluated = evaluate(
                self.stepper, samples, self._batches, stop=stop, progress=progress, description=name
            )
            if evaluated is None:
                return None
            metrics, _ = evaluated
            values = (f"{100 * metrics[metric]:.2f}" for metric in ("val_miou", "val_oiou"))
            count = len(samples)  # pyright: ignore[reportArgumentType]
            table.append([name, str(count), *values])
        return table if splits else []

    def _epoch(self, records: Records | None, progress: Progress | None, stop: StopRequest) -> bool:
        """Train to the end of the epoch, or until a process is asked to stop; returns whether it was."""
        options, processes = self.options, self.processes
        epoch, done = divmod(self.step, self.per_epoch)
        batches = epoch_batches(self.references, options.batch, options.seed, epoch, done)
        own = list(rank_batches(batches, options.accumulate, processes.rank, processes.world))
        start, first_step = time.perf_counter(), self.step
        loaded = self._batches(self.samples, own, replace_unreadable=options.skip_broken > 0)
        while parts := list(islice(loaded, options.accumulate)):
            factor = lr_factor(self.step, self.total, options.warmup, self.decay_from)
            set_lr(self.stepper.optimizer, factor)
            for part in parts:
                self._report_unreadable(part["unreadable"])
            result = self.stepper.step(parts, stop.requested)
            self.step += 1
            if not result.updated:
                self._report_not_finite(parts, result)
            speed = (self.step - first_step) * options.batch / (time.perf_counter() - start)
            if records and progress:
                records.write(
                    step=self.step, epoch=epoch, loss=result.loss, bce=result.bce, dice=result.dice,
                    norm=result.grad_norm, rate=factor * options.lr, images_per_second=speed,
                )  # fmt: skip
                text = f"loss {result.loss:.3f}  {speed:.0f} images/s"
                progress.update(progress.task_ids[0], completed=self.step, note=text)
            if result.stop:
                return True
            if self.step % options.save_every == 0 and self.step % self.per_epoch:
                self._save()
        return False

    def _report_unreadable(self, samples: list[tuple[int, str]]) -> None:
        for index, reason in samples:
            if index not in self.unreadable:
                self.unreadable.add(index)
                note(f"skipped: {describe(self.samples, index)}: {reason}")
        if len(self.unreadable) > self.options.skip_broken:
            raise UserError(
                f"{len(self.unreadable)} samples are unreadable; repair them or raise --skip-broken"
            )

    def _report_not_finite(self, parts: list[dict[str, Any]], result: StepResult) -> None:
        self.skipped += 1
        own = [describe(self.samples, index) for part in parts for index in part["index"].tolist()]
        names = "; ".join(name for names in self.processes.gather(own) for name in names)
        what = f"loss {result.loss}, gradient norm {result.grad_norm} at step {self.step}: {names}"
        if self.skipped > self.options.skip_nonfinite:
            raise VerificationError(f"{what}; lower --lr, or skip such batches with --skip-nonfinite")
        if self.processes.first:
            note(f"skipped: {what}")

    def _validate(
        self, epoch: int, records: Records | None, progress: Progress | None, stop: StopRequest
    ) -> bool:
        """Evaluate the validation set and save the best weights; returns False if asked to stop."""
        evaluated = evaluate(
            self.stepper, self.validation, self._batches,
            drawn=DRAWN, stop=stop, progress=progress, description="validation",
        )  # fmt: skip
        if evaluated is None:
            return False
        metrics, cells = evaluated
        self.validated = epoch
        if metrics["val_miou"] > self.best:
            self.best = metrics["val_miou"]
            self._save_model("best.safetensors")
        if records and progress:
            records.write(step=self.step, epoch=epoch, **metrics)
            records.write_images(cells, self.step)
            progress.console.print(f"epoch {epoch}: validation mIoU {metrics['val_miou']:.3f}")
        return True

    def _batches(
        self, samples: Dataset, batches: list[list[int]], replace_unreadable: bool = False
    ) -> Iterator[dict[str, Any]]:
        return load_batches(
            samples,
            batches,
            replace_unreadable=replace_unreadable,
            workers=self.options.workers,
            pin_memory=self.stepper.device.type == "cuda",
        )

    def _save(self) -> None:
        """Save the training state and the weights. Raises `VerificationError` if a weight is not finite."""
        for name, tensor in self.stepper.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise VerificationError(f"{name} is not finite after step {self.step}; lower --lr")
        cuda = self.stepper.device if self.stepper.device.type == "cuda" else None
        own = (torch.get_rng_state(), torch.cuda.get_rng_state(cuda) if cuda else None)
        rng = self.processes.gather(own)
        if self.processes.first:
            TrainingState(
                config=self.config.to_json(),
                options=self.options.fixed(),
                step=self.step,
                validated=self.validated,
                best=self.best,
                skipped=self.skipped,
                trained=self.stepper.state(),
                rng=[cpu for cpu, _ in rng],
                cuda_rng=[gpu for _, gpu in rng],
            ).save(self.out / "training.pt")
        self._save_model("model.safetensors")

    def _save_model(self, name: str) -> None:
        if self.processes.first:
            dtype = torch.float16 if self.options.half_weights else torch.float32
            notes = {"training": f"step {self.step} of {self.total}"}
            save_model(self.stepper.weights, self.out / name, dtype=dtype, notes=notes)

    def _restore(self, state: TrainingState) -> None:
        self.stepper.load_state(state.trained)
        self.step, self.validated = state.step, state.validated
        self.skipped = state.skipped
        if (self.out / "best.safetensors").exists():  # absent if the run is resumed in another folder
            self.best = state.best
        rank = self.processes.rank
        if len(state.rng) != self.processes.world:
            # Another number of processes: new random states, the same each time it is resumed at this step.
            torch.manual_seed(self.options.seed + rank + 1_000_003 * state.step)
            return
        torch.set_rng_state(state.rng[rank])
        cuda_rng = state.cuda_rng[rank]
        if self.stepper.device.type == "cuda" and cuda_rng is not None:
            torch.cuda.set_rng_state(cuda_rng, self.stepper.device)
