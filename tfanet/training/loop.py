"""The training loop: any number of processes, validation every epoch, resumable at any step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import Progress, TextColumn
from torch.utils.data import DataLoader, Dataset

from tfanet.checkpoint import save_model
from tfanet.console import bar, note, say
from tfanet.errors import UserError, VerificationError
from tfanet.files import write_text
from tfanet.iou import intersection_union, iou, mean_iou, overall_iou
from tfanet.model import TFANet
from tfanet.training.losses import segmentation_loss
from tfanet.training.options import TrainingOptions
from tfanet.training.processes import Processes
from tfanet.training.records import Records
from tfanet.training.schedule import epoch_batches, rate_factor, set_rates, shares
from tfanet.training.state import TrainingState, load_state
from tfanet.training.steps import Figures, Stepper, choose_precision
from tfanet.training.trouble import (
    Readable,
    Stop,
    collate,
    describe,
    leave_signals,
    named_loader_deaths,
    stop_on_signal,
)
from tfanet.visualize import Cell

SHOWN = 6
"""Validation pairs whose predictions are drawn."""

_HALF_WRITTEN = (
    ".training-*.pt", ".*-*.safetensors", ".log-*.csv", ".splits-*.csv", ".curves-*.png",
    ".predictions-*.png", ".tmp??????",
)  # fmt: skip
"""Temporary names of what a run writes (`tfanet.files.atomic_path`); the last is safetensors' own."""


def train(
    model: TFANet,
    pairs: Dataset,
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

    `pairs` and `validation` give the items of `tfanet.data.transforms.TrainingPairs`; `resume` is the
    training state to go on from; `splits` are measured at the end, in one table. With `references`, lists of
    indices into `pairs`, an epoch trains one pair of each; without, every pair. `model` holds the stored
    weights afterwards: the moving average, where there is one.

    Returns False when Ctrl-C or SIGTERM stopped the run: the step under way is finished and the state saved
    first; a measurement under way is broken off and made anew when the run goes on. More trouble than the
    options allow raises `VerificationError` (something not finite) or `UserError` (pairs that cannot be read,
    a loader process that died); the state of the last saving stays.
    """
    references = references or [[i] for i in range(len(pairs))]  # pyright: ignore[reportArgumentType]
    run = _Run(model, pairs, validation, out, options, processes or Processes(), references)
    with stop_on_signal() as stop, named_loader_deaths():
        return run.run(resume, splits or {}, stop)


class _Run:
    def __init__(
        self,
        model: TFANet,
        pairs: Dataset,
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
        self.pairs, self.validation, self.references = pairs, validation, references
        count = len(references)
        pieces = options.accumulate * processes.world
        if options.batch % pieces:
            raise UserError(
                f"a batch of {options.batch} cannot be shared by {processes.world} processes in "
                f"{options.accumulate} parts each; it must be a multiple of {pieces}"
            )
        if count < options.batch:
            raise UserError(f"{count} samples an epoch are fewer than one batch of {options.batch}")
        self.stepper = Stepper(model, self.options, processes)
        self.per_epoch = count // options.batch
        self.total = self.per_epoch * options.epochs
        start = options.epochs / 2 if options.decay_from is None else options.decay_from
        self.decay_from = start * self.per_epoch
        self.step = self.validated = self.skipped = 0
        self.best = -1.0
        self.broken: set[int] = set()

    def run(self, resume: Path | None, splits: Mapping[str, Dataset], stop: Stop) -> bool:
        torch.manual_seed(self.options.seed + self.processes.rank)
        if resume:
            self._restore(load_state(resume, self.config, self.options.fixed()))
        first = self.processes.first
        if first:
            if self.options.warmup > self.total:
                reached = self.total / self.options.warmup
                note(
                    f"the warm-up of {self.options.warmup} steps is longer than the run of {self.total}: the "
                    f"rate reaches {reached:.0%} of --rate at most; give a shorter --warmup"
                )
            for stale in (found for pattern in _HALF_WRITTEN for found in self.out.glob(pattern)):
                stale.unlink(missing_ok=True)  # of a run that was killed while it wrote
        records = Records(self.out, self.step, self.validated) if first else None
        with bar(TextColumn("{task.fields[note]}")) if first else nullcontext() as progress:
            if progress:
                progress.add_task("training", total=self.total, completed=self.step, note="")
            finished = self._train(records, progress, stop)
            if records:
                records.close()
            self.stepper.model.load_state_dict(self.stepper.weights.state_dict())
            table = self._measure(splits, progress, stop) if finished else None
        if first and table:
            write_text(self.out / "splits.csv", "".join(f"{','.join(row)}\n" for row in table))
            for split, *values in table:
                say(f"{split:<8}" + "".join(f"{value:>13}" for value in values))
        return table is not None

    def _train(self, records: Records | None, progress: Progress | None, stop: Stop) -> bool:
        """Every epoch and its validation; returns whether all are done."""
        stopped = False
        while not stopped:
            epoch, rest = divmod(self.step, self.per_epoch)
            if rest == 0 and epoch > self.validated:
                self._save()  # validation may take long: what is done is safe
                if not self._validate(epoch, records, progress, stop):
                    return False
                self._save()
            if self.step == self.total:
                return True
            stopped = self._epoch(records, progress, stop)
        self._save()
        return False

    def _measure(
        self, splits: Mapping[str, Dataset], progress: Progress | None, stop: Stop
    ) -> list[list[str]] | None:
        """What the stored weights reach on each of `splits`, in percent, as a table; None when stopped."""
        table = [["split", "expressions", "mIoU", "oIoU"]]
        for name, pairs in splits.items():
            found = evaluate(self.stepper, pairs, self._loader, 0, stop, progress, name)
            if found is None:
                return None
            values = (f"{100 * found[0][figure]:.2f}" for figure in ("val_miou", "val_oiou"))
            count = len(pairs)  # pyright: ignore[reportArgumentType]
            table.append([name, str(count), *values])
        return table if splits else []

    def _epoch(self, records: Records | None, progress: Progress | None, stop: Stop) -> bool:
        """Train to the epoch's end or until a process is asked to stop; returns whether that was so."""
        options, processes = self.options, self.processes
        epoch, done = divmod(self.step, self.per_epoch)
        batches = epoch_batches(self.references, options.batch, options.seed, epoch, done)
        own = list(shares(batches, options.accumulate, processes.rank, processes.world))
        started, start_step = time.perf_counter(), self.step
        parts_of_batches = self._loader(Readable(self.pairs, options.skip_broken > 0), own)
        while parts := list(islice(parts_of_batches, options.accumulate)):
            factor = rate_factor(self.step, self.total, options.warmup, self.decay_from)
            set_rates(self.stepper.optimizer, factor)
            for part in parts:
                self._report_broken(part["broken"])
            figures = self.stepper.step(parts, stop.requested)
            self.step += 1
            if not figures.done:
                self._report_not_finite(parts, figures)
            speed = (self.step - start_step) * options.batch / (time.perf_counter() - started)
            if records and progress:
                records.write(
                    step=self.step, epoch=epoch, loss=figures.loss, bce=figures.bce, dice=figures.dice,
                    norm=figures.norm, rate=factor * options.rate, images_per_second=speed,
                )  # fmt: skip
                text = f"loss {figures.loss:.3f}  {speed:.0f} images/s"
                progress.update(progress.task_ids[0], completed=self.step, note=text)
            if figures.stop:
                return True
            if self.step % options.save_every == 0 and self.step % self.per_epoch:
                self._save()
        return False

    def _report_broken(self, found: list[tuple[int, str]]) -> None:
        for index, reason in found:
            if index not in self.broken:
                self.broken.add(index)
                note(f"left out: {describe(self.pairs, index)}: {reason}")
        if len(self.broken) > self.options.skip_broken:
            raise UserError(f"{len(self.broken)} pairs cannot be read; repair them or raise --skip-broken")

    def _report_not_finite(self, parts: list[dict[str, Any]], figures: Figures) -> None:
        self.skipped += 1
        own = [describe(self.pairs, index) for part in parts for index in part["index"].tolist()]
        names = "; ".join(name for names in self.processes.gather(own) for name in names)
        what = f"the loss is {figures.loss}, the gradient's norm {figures.norm} at step {self.step}: {names}"
        if self.skipped > self.options.skip_nonfinite:
            raise VerificationError(f"{what}; lower --rate, or leave such batches out with --skip-nonfinite")
        if self.processes.first:
            note(f"left out: {what}")

    def _validate(self, epoch: int, records: Records | None, progress: Progress | None, stop: Stop) -> bool:
        """Measure, show and keep the best; returns False when a process is asked to stop."""
        found = evaluate(self.stepper, self.validation, self._loader, SHOWN, stop, progress, "validation")
        if found is None:
            return False
        figures, cells = found
        self.validated = epoch
        if figures["val_miou"] > self.best:
            self.best = figures["val_miou"]
            self._store("best.safetensors")
        if records and progress:
            records.write(step=self.step, epoch=epoch, **figures)
            records.show(cells, self.step)
            progress.console.print(f"epoch {epoch}: validation mIoU {figures['val_miou']:.3f}")
        return True

    def _loader(self, pairs: Dataset, batches: list[list[int]]) -> Iterator[dict[str, Any]]:
        """The `batches` of `pairs`; raises the `UserError` of one that cannot be read."""
        # Its own generator: the loader would draw from torch's, and a resumed run would go another way.
        loader = DataLoader(
            pairs,
            batch_sampler=batches,
            num_workers=self.options.workers,
            generator=torch.Generator(),
            collate_fn=collate,
            pin_memory=self.stepper.device.type == "cuda",
            worker_init_fn=leave_signals,
        )
        for part in loader:
            if isinstance(part, UserError):
                raise part
            yield part

    def _save(self) -> None:
        for name, tensor in self.stepper.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise VerificationError(f"{name} is not finite after step {self.step}; lower --rate")
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
        self._store("model.safetensors")

    def _store(self, name: str) -> None:
        if self.processes.first:
            dtype = torch.float16 if self.options.half_weights else torch.float32
            notes = {"training": f"step {self.step} of {self.total}"}
            save_model(self.stepper.weights, self.out / name, dtype=dtype, notes=notes)

    def _restore(self, state: TrainingState) -> None:
        self.stepper.load_state(state.trained)
        self.step, self.validated = state.step, state.validated
        self.skipped = state.skipped
        if (self.out / "best.safetensors").exists():  # else the run goes on in another folder than it began
            self.best = state.best
        rank = self.processes.rank
        if len(state.rng) != self.processes.world:
            # Other processes than before: the draws go on anew, the same at every such resumption.
            torch.manual_seed(self.options.seed + rank + 1_000_003 * state.step)
            return
        torch.set_rng_state(state.rng[rank])
        cuda_rng = state.cuda_rng[rank]
        if self.stepper.device.type == "cuda" and cuda_rng is not None:
            torch.cuda.set_rng_state(cuda_rng, self.stepper.device)


@torch.inference_mode()
def evaluate(
    stepper: Stepper,
    pairs: Dataset,
    loader: Callable[[Dataset, list[list[int]]], Iterator[dict[str, Any]]],
    shown: int,
    stop: Stop,
    progress: Progress | None,
    what: str,
) -> tuple[dict[str, float], list[Cell]] | None:
    """Mean loss, mean and overall IoU at the model's own S x S over all processes, and `shown` pairs.

    The pairs shown are spread evenly over the first process's. `progress` calls the work `what`. None where
    a process is asked to stop. A pair that cannot be read raises `UserError`: figures are of all pairs or of
    none. `tfanet-eval` measures at the pictures' sizes.
    """
    processes = stepper.processes
    count = len(pairs)  # pyright: ignore[reportArgumentType]
    batches = [list(range(i, min(i + 32, count))) for i in range(0, count, 32)]
    own = batches[processes.rank :: processes.world]
    places = [place for batch in own for place in batch]
    drawn = {places[i * len(places) // shown] for i in range(shown if processes.first else 0)}
    model = stepper.weights.eval()
    loss = torch.zeros((), dtype=torch.float64, device=stepper.device)
    counts: list[tuple[int, int]] = []
    cells: list[Cell] = []
    parts = loader(Readable(pairs, False), own)
    task = progress.add_task(what, total=len(places), note="") if progress else None
    for _ in range(-(-len(batches) // processes.world)):  # as often in every process, for they ask the others
        if processes.total(torch.tensor(float(stop.requested), device=stepper.device)).item():
            return None
        if (part := next(parts, None)) is None:
            continue
        batch = stepper.move(part)
        # Compiled code is of the batches of training alone.
        with stepper.autocast(), torch.compiler.set_stance("force_eager"):
            logits = model(batch["image"], batch["tokens"])
        loss += segmentation_loss(logits, batch["mask"]).total * len(logits)
        masks, truths = (logits > 0).cpu().numpy(), part["mask"].numpy() > 0
        for place, (mask, truth) in enumerate(zip(masks, truths, strict=True)):
            counts.append(intersection_union(mask, truth))
            if (index := int(part["index"][place])) in drawn:
                image = Image.fromarray(part["image"][place].numpy())
                cells.append(
                    Cell(image, describe(pairs, index), mask=mask, truth=truth, iou=iou(*counts[-1]))
                )
        if progress and task is not None:
            progress.advance(task, len(masks))
    if progress and task is not None:
        progress.remove_task(task)
    counts = [pair for part in processes.gather(counts) for pair in part]
    figures = {"val_miou": mean_iou(counts), "val_oiou": overall_iou(counts)}
    return {"val_loss": processes.total(loss).item() / count, **figures}, cells
