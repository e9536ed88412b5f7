"""Training steps of the whole model, and of ReMamber: `python benchmarks/training_gpu.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from options import RESULTS, LimitOption, OutOption, check_threads, require_cuda
from report import about_gpu, machine, show, write

from tfanet.console import new_app, run, track
from tfanet.errors import UserError, VerificationError
from tfanet.files import require_writable

if TYPE_CHECKING:
    from timing import Timer
    from training_measure import Candidate, PeakMemory, Row

app = new_app("Time training steps on this machine, and measure their memory.")
NOTES = (
    "ms: of an optimizer step from a batch in the host's memory, gradients clipped, weights averaged",
    "MiB: peak of the GPU memory that PyTorch allocated: weights, gradients, state of AdamW, activations",
    "loss: of the first step, on the same weights and pairs; ReMamber has its own weights",
    "status: ok, or why there is no time",
)


@app.command()
def training_gpu(
    preset: Annotated[str, typer.Option(help="The model, with random weights.")] = "base",
    batch: Annotated[int, typer.Option(min=2, help="Pairs per step.")] = 8,
    precision: Annotated[
        str, typer.Option(help="As in tfanet-train; ReMamber runs in fp16 or fp32.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    only: Annotated[str, typer.Option(help="Names of candidates, comma-separated [all].")] = "",
    remamber: Annotated[
        Path | None, typer.Option(help="A checkout of ReMamber with its pretrain folder, to train it too.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each candidate.")] = 30,
    limit: LimitOption = 60,
    out: OutOption = RESULTS,
) -> None:
    """Take the same steps with every candidate, compare their first losses, and write the table to --out."""
    require_writable(out / "training-gpu")
    if device == "cuda":
        require_cuda("--device cpu --preset tiny --batch 2 tries the script")

    import torch
    from timing import wall_timer
    from training_measure import PeakMemory, candidates

    on = torch.device(device)
    known = {candidate.name: candidate for candidate in candidates(preset, batch, precision, on, remamber)}
    names = {name.strip() for name in only.split(",") if name.strip()} or set(known)
    if unknown := names - set(known):
        raise UserError(f"unknown candidates {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    about = machine(check_threads(None)) | {"preset": preset, "batch": batch, "precision": precision}
    if device == "cuda":
        about |= about_gpu()
    chosen = [candidate for name, candidate in known.items() if name in names]
    report_on(chosen, batch, wall_timer(repeats, limit), PeakMemory(on), about, out)


def report_on(
    candidates: Sequence[Candidate], batch: int, timer: Timer, memory: PeakMemory, about: dict[str, Any],
    out: Path,
) -> list[Row]:  # fmt: skip
    """Measure the candidates and write the report again after each.

    Raises `VerificationError` at the end if a first loss was off.
    """
    from training_measure import goal, measure, records, table

    rows: list[Row] = []
    for candidate in track(candidates, "candidates", len(candidates)):
        expected = next((row.loss for row in rows if row.seconds and candidate.comparable), None)
        rows.append(measure(candidate, expected, timer, memory))
        notes = (*NOTES, goal(rows))
        paths = write("training-gpu", out, about, [table(rows, batch)], notes, records(rows))
    show([table(rows, batch)], notes, paths)
    if wrong := [row for row in rows if row.wrong]:
        raise VerificationError(f"{len(wrong)} losses are off; the first: {wrong[0].name}: {wrong[0].why}")
    return rows


if __name__ == "__main__":
    run(app)
