"""Our kernels and other scans on this machine's GPU: `python benchmarks/scan_gpu.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from options import (
    RESULTS,
    SHAPES,
    BatchesOption,
    LimitOption,
    OutOption,
    Shape,
    ShapesOption,
    check_threads,
    parse_batches,
    parse_shapes,
    require_cuda,
)
from report import about_gpu, machine, show, write

from tfanet.config import preset as known_preset
from tfanet.console import bar, new_app, run, say
from tfanet.errors import UserError, VerificationError
from tfanet.files import require_writable

if TYPE_CHECKING:
    import torch
    from gpu_measure import Row
    from kernel_choice import Kernels
    from report import Table
    from timing import Timer

    from tfanet.model import TFANet

SECTIONS = ("scan", "backward", "cross", "attention", "model")
app = new_app("Time our kernels, other scans and the whole model on this machine's GPU.")


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    shapes: Sequence[Shape]
    batches: Sequence[int]
    dtypes: Sequence[str]
    sections: Sequence[str]
    repeats: int
    limit: float
    compile_limit: float
    preset: str


@app.command()
def scan_gpu(
    shapes: ShapesOption = SHAPES,
    batches: BatchesOption = "1,8",
    fp32: Annotated[bool, typer.Option("--fp32", help="Kernels in FP32 too; the model always is.")] = False,
    only: Annotated[str, typer.Option(help=f"Of {', '.join(SECTIONS)}, comma-separated.")] = "",
    preset: Annotated[str, typer.Option(help="The model, with random weights.")] = "base",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each candidate.")] = 50,
    limit: LimitOption = 20,
    compile_limit: Annotated[
        float, typer.Option(help="Seconds for torch.compile in a subprocess; 0 leaves it out.")
    ] = 120,
    out: OutOption = RESULTS,
) -> None:
    """Check all candidates against the vectorised path, time them, and write the tables to --out."""
    sections = parse_sections(only)
    dtypes = ("FP16", "FP32") if fp32 else ("FP16",)
    known_preset(preset)
    plan = Plan(
        parse_shapes(shapes), parse_batches(batches), dtypes, sections, repeats, limit, compile_limit, preset
    )
    require_writable(out / "scan-gpu")
    require_gpu(sections)

    import torch
    from kernel_choice import triton_kernels
    from timing import EventTimer

    device = torch.device("cuda")
    about = machine(check_threads(None)) | about_gpu() | {"repeats": repeats}
    report_on(plan, device, triton_kernels(), EventTimer(device, repeats, limit), about, out)
    say("next: python benchmarks/scan_cpu.py")


def parse_sections(text: str) -> list[str]:
    """Names in `SECTIONS`, by default all. Raises `UserError` for another name."""
    names = [name.strip() for name in text.split(",")] if text else SECTIONS
    if unknown := [name for name in names if name not in SECTIONS]:
        raise UserError(f"--only takes {', '.join(SECTIONS)}, comma-separated, not {unknown[0]!r}")
    return [name for name in SECTIONS if name in names]


def require_gpu(sections: Sequence[str]) -> None:
    """Raises `UserError` if this machine cannot run the sections."""
    require_cuda("benchmarks/scan_cpu.py times the scans on a CPU")
    if find_spec("triton") is None:
        raise UserError("Triton is not installed; it comes with PyTorch's CUDA builds for Linux")
    if "model" in sections and find_spec("open_clip") is None:
        others = ",".join(name for name in SECTIONS if name != "model")
        raise UserError(f"the model needs open_clip: pip install open_clip_torch, or --only {others}")


def report_on(
    plan: Plan, device: torch.device, kernels: Kernels, timer: Timer, about: dict[str, Any], out: Path
) -> None:
    """Measure the sections and write the report again after each.

    Raises `VerificationError` at the end if one of our kernels failed or gave a wrong result.
    """
    from gpu_report import definitions, exceptions, goals_table, records, section_table
    from timing import copy_bandwidth

    bandwidth = copy_bandwidth(device, timer)
    about = about | {"copy bandwidth, GB/s": round(bandwidth / 1e9, 1)}
    say(f"copy bandwidth: {bandwidth / 1e9:.1f} GB/s, bytes read and written")
    rows: list[Row] = []
    tables: list[Table] = []
    for section in plan.sections:
        new_rows = measure_section(section, plan, device, kernels, timer)
        rows += new_rows
        tables.append(section_table(section, new_rows, bandwidth))
        tables[-1].show()
        goals = goals_table(rows, bandwidth)
        notes = [*definitions(), *exceptions(rows, plan.repeats)]
        data = {"copy_bandwidth": bandwidth, "rows": records(rows, bandwidth)}
        paths = write("scan-gpu", out, about, [*tables, goals], notes, data)
    show([goals], notes, paths)
    if failed := [row for row in rows if row.ours and row.why]:
        first = failed[0]
        raise VerificationError(
            f"{len(failed)} measurements of our kernels failed; the first: {first.name}, {first.section}, "
            f"{first.size}, batch {first.batch}, {first.dtype}: {first.why}"
        )


def measure_section(
    section: str, plan: Plan, device: torch.device, kernels: Kernels, timer: Timer
) -> list[Row]:
    """A row for every candidate of every case of the section."""
    import torch
    from gpu_measure import measure

    rows: list[Row] = []
    cases = list(section_cases(section, plan, device, kernels))
    with bar() as progress:
        task = progress.add_task(section, total=len(cases))
        for open_case in cases:
            rows += measure(open_case(), timer)
            torch.cuda.empty_cache()
            progress.advance(task)
    if section == "scan" and plan.compile_limit > 0:
        rows += compiled_rows(plan, device)
    return rows


def section_cases(
    section: str, plan: Plan, device: torch.device, kernels: Kernels
) -> Iterator[Callable[[], Any]]:
    """Functions that open one case each: the tensors of all cases together may not fit into memory."""
    import gpu_cases as cases

    if section == "model":
        model = build(plan.preset)
        for dtype in cases.DTYPES:
            for batch in plan.batches:
                yield partial(cases.model_case, model, batch, dtype, device)
        return
    openers = {"scan": cases.scan_case, "backward": cases.backward_case, "cross": cases.cross_case}
    for dtype in plan.dtypes:
        for batch in plan.batches:
            if section == "attention":
                for sizes in attention_sizes(plan):
                    yield partial(cases.attention_case, sizes, batch, dtype, device, kernels)
                continue
            for shape in plan.shapes:
                yield partial(openers[section], shape, batch, dtype, device, kernels)


def attention_sizes(plan: Plan) -> list[Any]:
    """The two attentions of MLAM at its largest map: queries from pixels, then queries from tokens."""
    from gpu_cases import Attention

    config = known_preset(plan.preset)
    pixels, tokens = max(shape.length for shape in plan.shapes), config.token_length
    heads = config.mlam_heads, config.mlam_dim // config.mlam_heads
    return [Attention(pixels, tokens, *heads), Attention(tokens, pixels, *heads)]


def build(preset: str) -> TFANet:
    """The preset with seeded random weights, on the CPU."""
    import torch

    from tfanet.model import TFANet

    torch.manual_seed(0)
    return TFANet(known_preset(preset)).eval()


def compiled_rows(plan: Plan, device: torch.device) -> list[Row]:
    """torch.compile of the vectorised scan, each in a subprocess with a time limit.

    If a batch size fails, larger ones of the same shape are not tried.
    """
    import gpu_cases as cases
    from gpu_measure import Row

    from tfanet.subprocesses import run_in_subprocess

    rows = []
    for dtype in plan.dtypes:
        for shape in plan.shapes:
            failed = False
            for batch in sorted(plan.batches):
                key = ("scan", str(shape), batch, dtype, cases.COMPILED)
                if failed:
                    rows.append(Row(*key, why="not tried: a smaller batch failed"))
                    continue
                job = cases.CompiledJob(shape, batch, dtype, device, plan.repeats, plan.limit)
                say(f"torch.compile, {shape}, batch {batch}, {dtype}: at most {plan.compile_limit:g} s")
                try:
                    rows.append(
                        run_in_subprocess(
                            cases.measure_compiled, job, timeout=plan.compile_limit, name="torch.compile"
                        )
                    )
                except VerificationError as error:
                    failed = True
                    rows.append(Row(*key, why=str(error)))
    return rows


if __name__ == "__main__":
    run(app)
