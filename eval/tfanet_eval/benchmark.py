"""Benchmark several engines on one data set, each in its own process, so they share no memory or threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfanet.console import say
from tfanet.errors import UserError, VerificationError
from tfanet.files import write_json
from tfanet.subprocesses import OnMessage, run_in_subprocess
from tfanet_engines.sidecar import Sidecar
from tfanet_engines.targets import capability_here, fits, sm
from tfanet_eval import tables
from tfanet_eval.evaluation import combine
from tfanet_eval.jobs import EvaluationJob, environment, run_job

OK = "ok"
NOT_RUN = "not run: "
"""Prefix of the status of a plan that was built for other GPUs."""
FLOORS = ("mIoU", "oIoU", "images/s", "speedup")
COLUMNS = (
    "engine", "status", "MB", "mIoU", "oIoU", "max logit error", "mask agreement", "ms per image", "p95 ms",
    "images/s", "speedup", "peak MB",
)  # fmt: skip
Measurement = tuple[str, dict[str, Any]]
"""Status of an engine and its values by column."""


@dataclass(frozen=True)
class Row:
    """One engine: `status` is `OK` or the reason why it has none, `values` the measurements by column."""

    engine: str
    status: str
    values: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"engine": self.engine, "status": self.status, **self.values}


def benchmark(jobs: Sequence[EvaluationJob]) -> list[Row]:
    """Run the jobs one after the other; returns a row for each.

    The first job is PyTorch eager; `speedup` is relative to its images/s. An engine that cannot run here,
    breaks a parity bound or crashes its process has a row with the reason as its status.
    """
    rows: list[Row] = []
    for job in jobs:
        status, values = _in_subprocess(measure, job)
        eager = (rows[0].values if rows else values).get("images/s")
        if eager and "images/s" in values:
            values = {**values, "speedup": values["images/s"] / eager}
        size = {"MB": job.engine.stat().st_size} if job.engine.is_file() else {}
        rows.append(Row(job.engine.name, status, size | values))
    return rows


def measure(job: EvaluationJob) -> Measurement:
    """Status and values of one engine, measured in this process.

    Latency and memory come from a first pass in which nothing else runs during a call, parity from a second
    pass together with the reference. Raises as `run_job` and `find_reference`.
    """
    from tfanet.console import peak_memory
    from tfanet_eval.reference import find_reference, gate_of, precision_of

    if reason := _why_not_here(job.engine):
        return f"{NOT_RUN}{reason}", {}
    if job.reference is not None:
        find_reference(job.engine, job.reference)
    alone = combine(run_job(replace(job, reference=None), overlap=False).values())
    values = tables.metric_columns(alone) | {"peak MB": peak_memory(), "images/s": 1e3 / alone.latency.median}
    if job.reference is None:
        return OK, values
    compared = combine(run_job(job).values())
    failures = gate_of(compared, precision_of(job.engine)).failures
    return f"failed: {failures[0]}" if failures else OK, tables.metric_columns(compared) | values


def _why_not_here(engine: Path) -> str:
    """Why this machine cannot run a plan: the GPUs that it was built for; empty if it can."""
    if engine.suffix != ".plan":
        return ""
    import torch

    targets = Sidecar.read(engine).compute_capabilities or []
    here = capability_here() if torch.cuda.is_available() else None
    if here is not None and fits(here, targets):
        return ""
    return f"built for {', '.join(map(sm, targets))}; runs on that GPU"


def _in_subprocess(function: Callable[[EvaluationJob], Measurement], job: EvaluationJob) -> Measurement:
    """`function(job)` in a new process; an error becomes the status."""
    try:
        return run_in_subprocess(_call, (function, job), name="its process", show_errors=True)
    except (UserError, VerificationError) as error:
        return f"failed: {error}", {}


def _call(task: tuple[Callable[[EvaluationJob], Measurement], EvaluationJob], _: OnMessage) -> Measurement:
    function, job = task
    return function(job)


def parse_floors(texts: Sequence[str]) -> dict[str, float]:
    """`["oIoU=0.70"]` as `{"oIoU": 0.7}`; raises `UserError` for another form or an unknown metric."""
    floors = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            floors[name] = float(value)
        except ValueError:
            raise UserError(f"--floor {text} is not METRIC=NUMBER, such as oIoU=0.70") from None
        if name not in FLOORS:
            raise UserError(f"--floor {text}: unknown metric {name!r}; known: {', '.join(FLOORS)}")
    return floors


def values_below(rows: Sequence[Row], floors: Mapping[str, float]) -> list[str]:
    """A message for each value below its floor; a missing value is below every floor."""
    messages = []
    for row in rows:
        for name, floor in floors.items():
            value = row.values.get(name)
            if value is None:
                messages.append(f"{name} of {row.engine} was not measured, its floor is {floor:g}")
            elif not value >= floor:
                messages.append(f"{name} of {row.engine} is {value:.4g}, below the floor of {floor:g}")
    return messages


def failures(rows: Sequence[Row], *, allow_other_gpus: bool = False) -> list[str]:
    """A message for each row that is not `OK`; with `allow_other_gpus` plans for other GPUs do not count."""
    return [
        f"{row.engine}: {row.status}"
        for row in rows
        if row.status != OK and not (allow_other_gpus and row.status.startswith(NOT_RUN))
    ]


def require_none(failures: Sequence[str]) -> None:
    """Raise `VerificationError` with the first failure, if there is one, and the number of the others."""
    if failures:
        more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise VerificationError(failures[0] + more)


def onnx_pair(checkpoint: Path, stem: Path, *, reuse: bool = False) -> list[Path]:
    """Export `STEM.onnx` and `STEM-fp16.onnx` from `checkpoint`; with `reuse` existing files are kept."""
    from tfanet.checkpoint import load_model
    from tfanet_export import export_onnx

    files = {False: stem.with_name(f"{stem.name}.onnx"), True: stem.with_name(f"{stem.name}-fp16.onnx")}
    for half, file in files.items():
        if not (reuse and file.exists()):
            rebuild = f"tfanet-export onnx --checkpoint {checkpoint} --out {file}{' --fp16' if half else ''}"
            export_onnx(load_model(checkpoint), file, fp16=half, rebuild=rebuild)
            say(f"wrote {file}")
    return [*files.values()]


def shuffled_miou(job: EvaluationJob) -> float:
    """The control: mIoU, 0..1, when every image gets the expression of another image."""
    return combine(run_job(replace(job, shuffled=True)).values()).metrics.result()["mIoU"]


def run_benchmark(
    jobs: Sequence[EvaluationJob], floors: Mapping[str, float], json_file: Path | None = None
) -> None:
    """Run `benchmark`, print its table and write it to `json_file`.

    Raises `VerificationError`, after the table, if an engine failed or a value is below its floor.
    """
    rows = benchmark(jobs)
    columns = [row.to_dict() for row in rows]
    first = jobs[0]
    title = (
        f"{first.data_name} {', '.join(first.splits)}, calls of {first.batch}; shares in percent; "
        "the first row is PyTorch eager"
    )
    brief = [row | {"status": row["status"].partition(":")[0]} for row in columns]
    tables.show(brief, COLUMNS, title)
    if json_file is not None:
        selected = tables.select(columns, COLUMNS)
        write_json(json_file, {"title": title, "rows": selected, "environment": environment()})
        say(f"wrote {json_file}")
    messages = failures(rows) + values_below(rows, floors)
    for message in messages:
        say(message)
    require_none(messages)
