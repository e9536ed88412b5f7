"""One evaluation divided among processes: of this machine's cores, or those that `torchrun` started.

Each makes its share of the engine's calls; the records of all, put in order, are those of one process.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet.console import bar
from tfanet.errors import UserError, VerificationError
from tfanet.subprocesses import OnMessage, run_in_subprocesses
from tfanet_eval.metrics import convention_named
from tfanet_eval.runs import Opened, Request, Share, measure, opened, share_of, whole

if TYPE_CHECKING:
    from tfanet.training.processes import Processes
    from tfanet_eval.evaluation import Evaluation


def run_in_workers(
    request: Request, workers: int, *, results: Path | None = None, resume: bool = False
) -> dict[str, Evaluation]:
    """As `tfanet_eval.runs.run_splits`, in `workers` processes with an equal share of the cores each.

    `UserError` with a plan or on a machine with a GPU, for those share one GPU, and what `run_splits` raises.
    """
    _require_cpu(request)
    threads = max(1, _cores() // workers)
    with opened(request, threads) as models:  # so that a mistake is told before there are processes
        total = _expressions(models, request)
    share = share_of(request, results, resume, workers)
    shares = [replace(share, part=(place, workers), threads=threads) for place in range(workers)]
    with bar() as progress:
        task = progress.add_task(
            f"{request.data_name} {', '.join(request.splits)}, {workers} processes",
            total=total, completed=len(share.done),
        )  # fmt: skip
        parts = run_in_subprocesses(_work, shares, lambda steps: progress.advance(task, steps))
    return whole(parts, share.file)


def _work(share: Share, send: OnMessage) -> dict[str, Evaluation]:
    with opened(share.request, share.threads) as models:
        return measure(models, share, send)


def _require_cpu(request: Request) -> None:
    import torch

    if request.engine.suffix == ".plan":
        raise UserError(f"--workers divides the cores, and {request.engine} runs on the GPU; leave it out")
    if torch.cuda.is_available():
        raise UserError(
            "--workers divides the cores, and engines run on this machine's GPU; leave it out, or hide the "
            "GPU: CUDA_VISIBLE_DEVICES= tfanet-eval ..."
        )


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _expressions(models: Opened, request: Request) -> int:
    rules = convention_named(request.convention)
    counts = [len(rules.samples(list(dataset))) for dataset in models.datasets.values()]
    return sum(min(count, request.limit or count) for count in counts)


def rank() -> int | None:
    """This process's place among those that `torchrun` started; None without it, or alone."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def run_in_ranks(
    request: Request, *, results: Path | None = None, resume: bool = False
) -> dict[str, Evaluation]:
    """As `tfanet_eval.runs.run_splits`, with the processes that `torchrun` started; for rank 0.

    The others call `follow`. Each runs on the GPU of its LOCAL_RANK, or on the CPU where there is none.
    `UserError` for an engine that is no checkpoint, and what `run_splits` raises.
    """
    if request.engine.suffix != ".safetensors":
        other = "" if request.engine.suffix == ".plan" else "; for others there is --workers"
        raise UserError(f"torchrun divides the evaluation of a .safetensors, not of {request.engine}{other}")
    from tfanet.training.processes import join_processes

    with join_processes(_device()) as (processes, _), opened(request) as models:
        share = share_of(request, results, resume, processes.world)
        _gathered(processes, share)
        label = f"{request.data_name}, process 1 of {processes.world},"
        mine = measure(models, replace(share, part=(0, processes.world), label=label))
        return whole(_gathered(processes, mine), share.file)


def follow() -> None:
    """What a process of another rank than 0 does: its share of the run that rank 0 tells of."""
    from tfanet.training.processes import join_processes

    with join_processes(_device()) as (processes, _):
        share = _gathered(processes, None)[0]
        with opened(share.request) as models:
            mine = measure(models, replace(share, part=(processes.rank, processes.world)))
        _gathered(processes, mine)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _gathered(processes: Processes, value: Any) -> list[Any]:
    """Everybody's value, by rank; `VerificationError` when one of them is gone, who has said why."""
    try:
        return processes.gather(value)
    except RuntimeError as error:
        raise VerificationError("another process of this run has ended before its answer") from error
