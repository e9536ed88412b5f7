"""One evaluation divided among processes: workers on this machine's cores, or the ranks of `torchrun`.

Each process makes its part of the engine calls; the merged records equal those of a single process.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet.console import bar
from tfanet.errors import UserError, VerificationError
from tfanet.subprocesses import OnMessage, run_in_subprocesses
from tfanet_eval.jobs import (
    EvaluationJob,
    JobPart,
    OpenJob,
    merge_parts,
    open_job,
    run_job,
    run_part,
    start_job,
)
from tfanet_eval.metrics import convention_named

if TYPE_CHECKING:
    from tfanet.training.processes import Processes
    from tfanet_eval.evaluation import Evaluation


def run_divided(
    job: EvaluationJob, workers: int = 1, *, results: Path | None = None, resume: bool = False
) -> dict[str, Evaluation]:
    """`run_job` in the processes of `torchrun`, in `workers` processes, or in this one."""
    if rank() is not None:
        return run_in_ranks(job, results=results, resume=resume)
    if workers > 1:
        return run_in_workers(job, workers, results=results, resume=resume)
    return run_job(job, results=results, resume=resume)


def run_in_workers(
    job: EvaluationJob, workers: int, *, results: Path | None = None, resume: bool = False
) -> dict[str, Evaluation]:
    """`run_job` in `workers` subprocesses, each with an equal part of the cores.

    Raises `UserError` for a plan and on a machine with a GPU, which the processes would share; also raises
    as `run_job`.
    """
    _require_cpu(job)
    threads = max(1, _cores() // workers)
    with open_job(job, threads) as opened:  # errors appear before any process starts
        total = _count_expressions(opened, job)
    start = start_job(job, results, resume, workers)
    parts = [replace(start, part=(number, workers), threads=threads) for number in range(workers)]
    with bar() as progress:
        task = progress.add_task(
            f"{job.data_name} {', '.join(job.splits)}, {workers} processes",
            total=total, completed=len(start.done),
        )  # fmt: skip
        evaluations = run_in_subprocesses(
            _work, parts, lambda steps: progress.advance(task, steps), show_errors=True
        )
    return merge_parts(evaluations, start.file)


def _work(part: JobPart, send: OnMessage) -> dict[str, Evaluation]:
    with open_job(part.job, part.threads) as opened:
        return run_part(opened, part, send)


def _require_cpu(job: EvaluationJob) -> None:
    import torch

    if job.engine.suffix == ".plan":
        raise UserError(f"--workers divides the cores, and {job.engine} runs on the GPU; leave it out")
    if torch.cuda.is_available():
        raise UserError(
            "--workers divides the cores, and engines run on this machine's GPU; leave it out, or hide the "
            "GPU: CUDA_VISIBLE_DEVICES= tfanet-eval ..."
        )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count_expressions(opened: OpenJob, job: EvaluationJob) -> int:
    convention = convention_named(job.convention)
    counts = [len(convention.samples(list(dataset))) for dataset in opened.datasets.values()]
    return sum(min(count, job.limit or count) for count in counts)


def rank() -> int | None:
    """This process's rank under `torchrun`; None without torchrun or with a single process."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def run_in_ranks(
    job: EvaluationJob, *, results: Path | None = None, resume: bool = False
) -> dict[str, Evaluation]:
    """`run_job` divided among the processes of `torchrun`; rank 0 calls this, other ranks `follow_rank_0`.

    Each rank runs on the GPU of its LOCAL_RANK, or on the CPU without GPUs. Raises `UserError` unless the
    engine is a checkpoint, and as `run_job`.
    """
    if job.engine.suffix != ".safetensors":
        other = "" if job.engine.suffix == ".plan" else "; for others there is --workers"
        raise UserError(f"torchrun divides the evaluation of a .safetensors, not of {job.engine}{other}")
    from tfanet.training.processes import join_processes

    with join_processes(_device()) as (processes, _), open_job(job) as opened:
        start = start_job(job, results, resume, processes.world)
        _gather(processes, start)
        label = f"{job.data_name}, process 1 of {processes.world},"
        evaluations = run_part(opened, replace(start, part=(0, processes.world), label=label))
        return merge_parts(_gather(processes, evaluations), start.file)


def follow_rank_0() -> None:
    """Run this rank's part of the job that rank 0 sends."""
    from tfanet.training.processes import join_processes

    with join_processes(_device()) as (processes, _):
        start: JobPart = _gather(processes, None)[0]
        with open_job(start.job) as opened:
            evaluations = run_part(opened, replace(start, part=(processes.rank, processes.world)))
        _gather(processes, evaluations)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _gather(processes: Processes, value: Any) -> list[Any]:
    """The values of all ranks; raises `VerificationError` if a rank has ended, which printed the reason."""
    try:
        return processes.gather(value)
    except RuntimeError as error:
        raise VerificationError("another process of this run ended before its result") from error
