"""Engines side by side: each in a process of its own, so that none owes another its memory or its threads."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfanet.console import say
from tfanet.errors import UserError, VerificationError
from tfanet.subprocesses import OnMessage, run_in_subprocess
from tfanet_engines.sidecar import Sidecar
from tfanet_engines.targets import capability_here, fits, sm
from tfanet_eval.evaluation import Evaluation
from tfanet_eval.runs import Request, run_splits

OK = "ok"
NOT_RUN = "not run: "
"""How the status of a plan begins that is for other GPUs than this machine's."""
FLOORS = ("mIoU", "oIoU", "images/s", "speedup")


@dataclass(frozen=True)
class Row:
    """One engine of the table: `status` is `OK` or says why not, `figures` are what was measured."""

    engine: str
    status: str
    figures: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"engine": self.engine, "status": self.status, **self.figures}


def benchmark(requests: Sequence[Request]) -> list[Row]:
    """A row for each request, in their order, one at a time.

    The first is PyTorch eager: `speedup` is an engine's images/s by its. An engine that cannot run here, that
    breaks a parity bound, or whose process dies keeps its row, and `status` says so.
    """
    rows: list[Row] = []
    for request in requests:
        status, figures = _in_subprocess(measure, request)
        eager = (rows[0].figures if rows else figures).get("images/s")
        if eager and "images/s" in figures:
            figures = {**figures, "speedup": figures["images/s"] / eager}
        size = {"MB": request.engine.stat().st_size} if request.engine.is_file() else {}
        rows.append(Row(request.engine.name, status, size | figures))
    return rows


def broken_floors(rows: Sequence[Row], floors: Mapping[str, float]) -> list[str]:
    """A sentence for each figure below its floor; a figure that was not measured is below every floor."""
    found = []
    for row in rows:
        for name, floor in floors.items():
            value = row.figures.get(name)
            if value is None:
                found.append(f"{name} of {row.engine} was not measured, its floor is {floor:g}")
            elif not value >= floor:
                found.append(f"{name} of {row.engine} is {value:.4g}, below the floor of {floor:g}")
    return found


def failures(rows: Sequence[Row], *, strangers: bool = False) -> list[str]:
    """A sentence for each row that is not `OK`; with `strangers` plans for other GPUs may be `NOT_RUN`."""
    return [
        f"{row.engine}: {row.status}"
        for row in rows
        if row.status != OK and not (strangers and row.status.startswith(NOT_RUN))
    ]


def require(sentences: Sequence[str]) -> None:
    """`VerificationError` with the first of them, if there is one, and the number of the others."""
    if sentences:
        more = f", and {len(sentences) - 1} more" if len(sentences) > 1 else ""
        raise VerificationError(sentences[0] + more)


def onnx_pair(checkpoint: Path, stem: Path, *, reuse: bool = False) -> list[Path]:
    """`STEM.onnx` and `STEM-fp16.onnx` of `checkpoint`; with `reuse` a file that is there is not made."""
    from tfanet.checkpoint import load_model
    from tfanet_export import export_onnx

    files = {False: stem.with_name(f"{stem.name}.onnx"), True: stem.with_name(f"{stem.name}-fp16.onnx")}
    for half, file in files.items():
        if not (reuse and file.exists()):
            again = f"tfanet-export onnx --checkpoint {checkpoint} --out {file}{' --fp16' if half else ''}"
            export_onnx(load_model(checkpoint), file, fp16=half, rebuild=again)
            say(f"wrote {file}")
    return [*files.values()]


def shuffled_miou(request: Request) -> float:
    """The control: mIoU, 0..1, with every picture's sentence that of another one."""
    return _sum(run_splits(replace(request, shuffled=True))).metrics.result()["mIoU"]


def parse_floors(texts: Sequence[str]) -> dict[str, float]:
    """`["oIoU=0.70"]` as `{"oIoU": 0.7}`; `UserError` for another form or an unknown figure."""
    floors = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            floors[name] = float(value)
        except ValueError:
            raise UserError(f"--floor {text} is not FIGURE=NUMBER, such as oIoU=0.70") from None
        if name not in FLOORS:
            raise UserError(f"--floor {text}: there is no figure {name!r}; known: {', '.join(FLOORS)}")
    return floors


def measure(request: Request) -> tuple[str, dict[str, Any]]:
    """Status and figures of one engine, in this process.

    Time and memory come from a pass in which the engine has the machine to itself; a second pass beside the
    reference gives parity. Raises as `run_splits` and `find_reference`.
    """
    from tfanet.console import peak_memory
    from tfanet_eval.reference import find_reference, gate_of, precision_of
    from tfanet_eval.tables import figures

    if elsewhere := _elsewhere(request.engine):
        return f"{NOT_RUN}{elsewhere}", {}
    if request.reference is not None:
        find_reference(request.engine, request.reference)
    alone = _sum(run_splits(replace(request, reference=None), overlap=False))
    found = figures(alone) | {"peak MB": peak_memory(), "images/s": 1e3 / alone.latency.median}
    if request.reference is None:
        return OK, found
    beside = _sum(run_splits(request))
    found |= {name: value for name, value in figures(beside).items() if name not in found}
    failures = gate_of(beside, precision_of(request.engine)).failures
    return f"failed: {failures[0]}" if failures else OK, found


def _elsewhere(engine: Path) -> str:
    """For a plan that is for other GPUs than that of this machine, which they are."""
    if engine.suffix != ".plan":
        return ""
    import torch

    wanted = Sidecar.read(engine).compute_capabilities or []
    here = capability_here() if torch.cuda.is_available() else None
    if here is not None and fits(here, wanted):
        return ""
    return f"built for {', '.join(map(sm, wanted))}; runs on that GPU"


def _sum(found: Mapping[str, Evaluation]) -> Evaluation:
    return functools.reduce(operator.add, found.values())


def _in_subprocess(work: Callable[[Request], tuple[str, dict]], request: Request) -> tuple[str, dict]:
    """What `work` gives in a fresh process; a failure is a status."""
    try:
        return run_in_subprocess(_without_messages, (work, request), name="its process")
    except (UserError, VerificationError) as error:
        return f"failed: {error}", {}


def _without_messages(
    job: tuple[Callable[[Request], tuple[str, dict]], Request], send: OnMessage
) -> tuple[str, dict]:
    work, request = job
    return work(request)
