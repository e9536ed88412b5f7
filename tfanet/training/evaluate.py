"""Validation during training: loss, mIoU and oIoU at the model's own image size, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from rich.progress import Progress
from torch.utils.data import Dataset

from tfanet.iou import intersection_union, iou, mean_iou, overall_iou
from tfanet.training.loader import describe
from tfanet.training.losses import segmentation_loss
from tfanet.training.signals import StopRequest
from tfanet.training.steps import Stepper
from tfanet.visualize import Cell

BATCH = 32
Loader = Callable[[Dataset, list[list[int]]], Iterator[dict[str, Any]]]


@torch.inference_mode()
def evaluate(
    stepper: Stepper,
    samples: Dataset,
    loader: Loader,
    *,
    drawn: int = 0,
    stop: StopRequest | None = None,
    progress: Progress | None = None,
    description: str = "",
) -> tuple[dict[str, float], list[Cell]] | None:
    """Mean loss, mIoU and oIoU (0..1) of `samples` at S x S pixels, and the first process's drawn samples.

    Args:
        loader: yields the given index batches of a data set, as `loader.load_batches` does.
        drawn: how many samples to draw, spread evenly over those of the first process.
        description: of the task in `progress`.

    Returns None if a process is asked to stop. Raises `UserError` for an unreadable sample: metrics are of
    all samples. `tfanet-eval` measures at the images' own sizes.
    """
    processes, model = stepper.processes, stepper.weights.eval()
    count = len(samples)  # pyright: ignore[reportArgumentType]
    batches = [list(range(i, min(i + BATCH, count))) for i in range(0, count, BATCH)]
    own = batches[processes.rank :: processes.world]
    to_draw = _evenly_spaced([i for batch in own for i in batch], drawn if processes.first else 0)
    loss = torch.zeros((), dtype=torch.float64, device=stepper.device)
    counts: list[tuple[int, int]] = []
    cells: list[Cell] = []
    parts = loader(samples, own)
    task = progress.add_task(description, total=sum(map(len, own)), note="") if progress else None
    for _ in range(-(-len(batches) // processes.world)):  # as often in every process, which all reduce `stop`
        stopped = torch.tensor(float(stop.requested if stop else 0), device=stepper.device)
        if processes.all_reduce(stopped).item():
            return None
        if (part := next(parts, None)) is None:
            continue
        batch = stepper.move(part)
        # Compiled code is for training batches only.
        with stepper.autocast(), torch.compiler.set_stance("force_eager"):
            logits = model(batch["image"], batch["tokens"])
        loss += segmentation_loss(logits, batch["mask"]).total * len(logits)
        predictions, targets = (logits > 0).cpu().numpy(), part["mask"].numpy() > 0
        for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
            counts.append(intersection_union(prediction, target))
            if (index := int(part["index"][i])) in to_draw:
                image = Image.fromarray(part["image"][i].numpy())
                cells.append(Cell(image, describe(samples, index), prediction, target, iou(*counts[-1])))
        if progress and task is not None:
            progress.advance(task, len(predictions))
    if progress and task is not None:
        progress.remove_task(task)
    counts = [pair for part in processes.gather(counts) for pair in part]
    metrics = {"val_miou": mean_iou(counts), "val_oiou": overall_iou(counts)}
    return {"val_loss": processes.all_reduce(loss).item() / count, **metrics}, cells


def _evenly_spaced(indices: list[int], count: int) -> set[int]:
    """`count` of the indices, spread evenly."""
    return {indices[i * len(indices) // count] for i in range(count)}
