"""Our kernels against their rivals on this machine's GPU: `python benchmarks/scan_gpu.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from report import RESULTS, check_threads, machine, write
from scan_cpu import SHAPES, parse_shapes

from tfanet.config import preset as known_preset
from tfanet.console import bar, new_app, run, say
from tfanet.errors import UserError, VerificationError
from tfanet.files import require_writable

if TYPE_CHECKING:
    import torch
    from gpu_cases import Kernels
    from gpu_measure import Row, Timer
    from report import Table
    from scan_measure import Shape

    from tfanet.model import TFANet

SECTIONS = ("scan", "backward", "cross", "attention", "model")
app = new_app("Time our kernels, their rivals and the whole model on this machine's GPU.")


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
    shapes: Annotated[str, typer.Option(help="LENGTH:CHANNELS of one direction.")] = SHAPES,
    batches: Annotated[str, typer.Option(help="Pictures at a time, comma-separated.")] = "1,8",
    fp32: Annotated[bool, typer.Option("--fp32", help="Kernels in FP32 too; the model always is.")] = False,
    only: Annotated[str, typer.Option(help=f"Of {', '.join(SECTIONS)}, comma-separated.")] = "",
    preset: Annotated[str, typer.Option(help="The model, with random weights.")] = "base",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 50,
    limit: Annotated[float, typer.Option(help="Seconds to time one figure; slow ones run less often.")] = 20,
    compile_limit: Annotated[
        float, typer.Option(help="Seconds for torch.compile, its process's start included; 0 leaves it out.")
    ] = 120,
    out: Annotated[
        Path, typer.Option(help="Folder of the report.", show_default="benchmarks/results")
    ] = RESULTS,
) -> None:
    """Check everything against the vectorised path, time it, and write tables to the terminal and --out."""
    sections = parse_sections(only)
    dtypes = ("FP16", "FP32") if fp32 else ("FP16",)
    known_preset(preset)
    plan = Plan(
        parse_shapes(shapes), parse_batches(batches), dtypes, sections, repeats, limit, compile_limit, preset
    )
    require_writable(out / "scan-gpu")
    require_gpu(sections)

    import torch
    from gpu_cases import triton_kernels
    from gpu_measure import EventTimer, about_gpu

    device = torch.device("cuda")
    about = machine(check_threads(None)) | about_gpu() | {"repeats": repeats}
    report_on(plan, device, triton_kernels(), EventTimer(device, repeats, limit), about, out)
    say("next: python benchmarks/scan_cpu.py")


def parse_sections(text: str) -> list[str]:
    """Names of `SECTIONS`, by default all; `UserError` for another."""
    names = [name.strip() for name in text.split(",")] if text else SECTIONS
    if unknown := [name for name in names if name not in SECTIONS]:
        raise UserError(f"--only takes {', '.join(SECTIONS)}, comma-separated, not {unknown[0]!r}")
    return [name for name in SECTIONS if name in names]


def parse_batches(text: str) -> list[int]:
    items = [item.strip() for item in text.split(",")]
    if not all(item.isdecimal() and int(item) > 0 for item in items):
        raise UserError(f"--batches takes whole numbers above 0, comma-separated, not {text!r}")
    return [int(item) for item in items]


def require_gpu(sections: Sequence[str]) -> None:
    """`UserError` where this machine cannot run the sections."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("no CUDA device here; benchmarks/scan_cpu.py times the scans on a CPU")
    if find_spec("triton") is None:
        raise UserError("Triton is not installed; it comes with PyTorch's CUDA builds for Linux")
    if "model" in sections and find_spec("open_clip") is None:
        others = ",".join(name for name in SECTIONS if name != "model")
        raise UserError(f"the model needs open_clip: pip install open_clip_torch, or --only {others}")


def report_on(
    plan: Plan, device: torch.device, kernels: Kernels, timer: Timer, about: dict[str, Any], out: Path
) -> None:
    """Measure section after section; the report is written again after each.

    Raises `VerificationError` at the end where a kernel of ours failed or gave a wrong result.
    """
    from gpu_measure import copy_bandwidth
    from gpu_report import definitions, exceptions, goals_table, records, section_table

    bandwidth = copy_bandwidth(device, timer)
    about = about | {"copy bandwidth, GB/s": round(bandwidth / 1e9, 1)}
    say(f"copy bandwidth: {bandwidth / 1e9:.1f} GB/s, read and written both counted")
    rows: list[Row] = []
    tables: list[Table] = []
    for section in plan.sections:
        found = measure_section(section, plan, device, kernels, timer)
        rows += found
        tables.append(section_table(section, found, bandwidth))
        tables[-1].show()
        every = [*tables, goals_table(rows, bandwidth)]
        notes = [*definitions(), *exceptions(rows, plan.repeats)]
        data = {"copy_bandwidth": bandwidth, "rows": records(rows, bandwidth)}
        paths = write("scan-gpu", out, about, every, notes, data)
    every[-1].show()
    for line in (*notes, *(f"wrote {path}" for path in paths)):
        say(line)
    if wrong := [row for row in rows if row.ours and row.why]:
        first = wrong[0]
        raise VerificationError(
            f"{len(wrong)} of our figures could not be taken; the first: {first.name}, {first.section}, "
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
    """What opens each case: their tensors would not all fit into memory together."""
    import gpu_cases as cases

    if section == "model":
        model = build(plan.preset)
        for dtype in cases.DTYPES:
            for batch in plan.batches:
                yield partial(cases.model_case, model, batch, dtype, device)
        return
    for dtype in plan.dtypes:
        for batch in plan.batches:
            if section == "attention":
                for sizes in attention_sizes(plan):
                    yield partial(cases.attention_case, sizes, batch, dtype, device, kernels)
                continue
            of = {"scan": cases.scan_case, "backward": cases.backward_case, "cross": cases.cross_case}
            for shape in plan.shapes:
                yield partial(of[section], shape, batch, dtype, device, kernels)


def attention_sizes(plan: Plan) -> list[Any]:
    """MLAM's two attentions at its largest map: the words ask the picture, the picture asks the words."""
    from gpu_cases import Attention

    config = known_preset(plan.preset)
    pixels, words = max(shape.length for shape in plan.shapes), config.token_length
    heads = config.mlam_heads, config.mlam_dim // config.mlam_heads
    return [Attention(pixels, words, *heads), Attention(words, pixels, *heads)]


def build(preset: str) -> TFANet:
    """The preset with seeded random weights, on the CPU."""
    import torch

    from tfanet.model import TFANet

    torch.manual_seed(0)
    return TFANet(known_preset(preset)).eval()


def compiled_rows(plan: Plan, device: torch.device) -> list[Row]:
    """torch.compile of the vectorised scan, each in a process with a time limit.

    Where a batch is over the limit, larger ones of that shape, with no fewer operations, are not tried.
    """
    import gpu_cases as cases
    from gpu_measure import Row, within

    rows = []
    for dtype in plan.dtypes:
        for shape in plan.shapes:
            over = False
            for batch in sorted(plan.batches):
                key = ("scan", cases.size_of(shape), batch, dtype, cases.COMPILED)
                if over:
                    rows.append(Row(*key, why="not tried: smaller batch over the limit"))
                    continue
                job = (shape, batch, dtype, device, plan.repeats, plan.limit)
                say(f"torch.compile, {key[1]}, batch {batch}, {dtype}: at most {plan.compile_limit:g} s")
                try:
                    rows.append(within(plan.compile_limit, cases.measure_compiled, *job))
                except TimeoutError:
                    over = True
                    rows.append(Row(*key, why=f"over {plan.compile_limit:g} s"))
                except EOFError:
                    rows.append(Row(*key, why="its process ended early"))
    return rows


if __name__ == "__main__":
    run(app)
