"""Training steps of the whole model, and of ReMamber's: `python benchmarks/training_gpu.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from report import RESULTS, check_threads, machine, write

from tfanet.console import new_app, run, say, track
from tfanet.errors import UserError, VerificationError
from tfanet.files import require_writable

if TYPE_CHECKING:
    from engines_measure import Timer
    from training_measure import Gauge, Rival, Row

app = new_app("Time training steps on this machine: our kernels, rivals, and what memory costs.")


@app.command()
def training_gpu(
    preset: Annotated[str, typer.Option(help="The model, with random weights.")] = "base",
    batch: Annotated[int, typer.Option(min=2, help="Pairs a step.")] = 8,
    precision: Annotated[str, typer.Option(help="As of tfanet-train; ReMamber's is fp16 or fp32.")] = "auto",
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    only: Annotated[str, typer.Option(help="Rivals, comma-separated, of the first column.")] = "",
    remamber: Annotated[
        Path | None, typer.Option(help="A checkout of ReMamber with its pretrain folder: train it, too.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each.")] = 30,
    limit: Annotated[float, typer.Option(help="Seconds to time one rival; slow ones run less often.")] = 60,
    out: Annotated[
        Path, typer.Option(help="Folder of the report.", show_default="benchmarks/results")
    ] = RESULTS,
) -> None:
    """Take the same steps in every way, check the loss of the first, and write the table to --out."""
    require_writable(out / "training-gpu")

    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here; --device cpu --preset tiny --batch 2 tries the script")
    from engines_measure import wall_timer
    from training_measure import CpuGauge, GpuGauge, rivals

    found = rivals(preset, batch, precision, torch.device(device), remamber)
    names = [name.strip() for name in only.split(",") if name.strip()] or [rival.name for rival in found]
    if odd := set(names) - {rival.name for rival in found}:
        known = ", ".join(rival.name for rival in found)
        raise UserError(f"unknown rivals {', '.join(sorted(odd))}; known: {known}")
    about = machine(check_threads(None)) | {"preset": preset, "batch": batch, "precision": precision}
    gauge: Gauge = CpuGauge()
    if device == "cuda":
        from gpu_measure import about_gpu

        about |= about_gpu()
        gauge = GpuGauge()
    chosen = [rival for rival in found if rival.name in names]
    report_on(chosen, batch, wall_timer(repeats, limit), gauge, about, out)


def report_on(
    contenders: Sequence[Rival], batch: int, timer: Timer, gauge: Gauge, about: dict[str, Any], out: Path
) -> list[Row]:
    """Measure one rival after the other; the report is written again after each.

    Raises `VerificationError` at the end where a first loss was off.
    """
    from training_measure import goal, measure, records, table

    rows: list[Row] = []
    for rival in track(contenders, "rivals", len(contenders)):
        expected = next((row.loss for row in rows if row.seconds and rival.comparable), None)
        rows.append(measure(rival, expected, timer, gauge))
        notes = (*NOTES, goal(rows))
        paths = write("training-gpu", out, about, [table(rows, batch)], notes, records(rows))
    table(rows, batch).show()
    for line in (*notes, *(f"wrote {path}" for path in paths)):
        say(line)
    if wrong := [row for row in rows if row.wrong]:
        raise VerificationError(f"{len(wrong)} losses are off; the first: {wrong[0].name}: {wrong[0].why}")
    return rows


NOTES = (
    "ms: of an optimizer step from a batch in the host's memory, gradients clipped, weights averaged",
    "MiB: peak of what PyTorch had of the GPU's memory, weights, gradients and AdamW's state included",
    "loss: of the first step, on the same weights and pairs; ReMamber has its own",
    "ran: yes, or what it said",
)


if __name__ == "__main__":
    run(app)
