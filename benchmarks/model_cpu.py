"""The whole model in PyTorch and ONNX Runtime on this machine's CPU: `python benchmarks/model_cpu.py`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from report import RESULTS, Table, check_threads, machine, write

from tfanet.config import TFANetConfig
from tfanet.config import preset as known_preset
from tfanet.console import new_app, run, say, working
from tfanet.errors import UserError
from tfanet.files import require_writable

if TYPE_CHECKING:
    from model_measure import Line

    from tfanet.model import TFANet

TORCH, ONNX = "PyTorch, eager", "ONNX Runtime"
BODIES = "ONNX Runtime, function bodies"
WITHOUT = "{}, without scans"
BARE = {TORCH: WITHOUT.format(TORCH), ONNX: WITHOUT.format(ONNX), BODIES: WITHOUT.format(ONNX)}
AT = "{}, {} x {}"
PROFILED = 12
app = new_app("Time the whole model in PyTorch and ONNX Runtime, on the same cores in the same run.")


@dataclass(frozen=True)
class Times:
    """Seconds of every timed run, by what ran; `sizes` are the images', the first being the model's."""

    sizes: tuple[int, ...]
    seconds: Mapping[str, Sequence[float]]

    @property
    def runtimes(self) -> list[str]:
        """Those that ran the model with its scans."""
        return [runtime for runtime in BARE if runtime in self.seconds]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def share_of_scans(self, runtime: str) -> float:
        """Of the runtime's time, 0..1."""
        return 1 - self.median(BARE[runtime]) / self.median(runtime)


@app.command()
def model_cpu(
    preset: Annotated[str, typer.Option(help="tiny or base, with random weights.")] = "base",
    checkpoint: Annotated[Path | None, typer.Option(help="A .safetensors in place of a preset.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="Its FP32 ONNX file; exported if not given.")] = None,
    sizes: Annotated[str, typer.Option(help="Image sizes: the model's, and others to grow to.")] = "",
    threads: Annotated[int | None, typer.Option(help="Threads; one a usable core if not given.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs after the first.")] = 5,
    onnx_growth: Annotated[bool, typer.Option("--onnx-growth", help="Export the other sizes too.")] = False,
    out: Annotated[
        Path, typer.Option(help="Folder of the report.", show_default="benchmarks/results")
    ] = RESULTS,
) -> None:
    """Time both runtimes in turns, with scans and without, and at other sizes; profile both."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler complains where there is no GPU
    threads = check_threads(threads)
    name = checkpoint.stem if checkpoint else preset
    config = read_config(preset, checkpoint)
    chosen = parse_sizes(sizes, config)
    require_writable(out / name)
    about = machine(threads) | {
        "model": checkpoint.name if checkpoint else f"{preset}, random weights, seed 0",
        "repeats": repeats,
    }
    model = open_model(config, checkpoint, chosen[0])
    with TemporaryDirectory(prefix="model-cpu-") as folder:
        file = onnx or export(model, Path(folder) / "model.onnx")
        note = check_onnx(model, file)
        times, profiles = measure(model, file, chosen, threads, repeats, onnx_growth, Path(folder))
    tables = [times_table(times), *growth_table(times)]
    tables += [profile_table(runtime, lines) for runtime, lines in profiles.items()]
    notes = [note, *ratios(times, threads), *definitions()]
    for table in tables:
        table.show()
    for line in notes:
        say(line)
    data = {
        "sizes": chosen,
        "seconds": times.seconds,
        "share of the scans": {runtime: times.share_of_scans(runtime) for runtime in times.runtimes},
        "profiles": {runtime: [line._asdict() for line in lines] for runtime, lines in profiles.items()},
    }
    for path in write(f"model_cpu-{name}", out, about, tables, notes, data):
        say(f"wrote {path}")
    say("next: python benchmarks/scan_cpu.py")


def read_config(preset: str, checkpoint: Path | None) -> TFANetConfig:
    """The config of the checkpoint, or else the preset."""
    if checkpoint is None:
        return known_preset(preset)
    from tfanet.checkpoint import load_config

    return load_config(checkpoint)


def parse_sizes(text: str, config: TFANetConfig) -> tuple[int, ...]:
    """Comma-separated sizes, by default the config's and twice that; `UserError` for one that cannot be."""
    if not text:
        return config.image_size, 2 * config.image_size
    items = [item.strip() for item in text.split(",")]
    if not all(item.isdecimal() for item in items):
        raise UserError(f"--sizes takes whole numbers, comma-separated, not {text!r}")
    return tuple(dataclasses.replace(config, image_size=int(item)).image_size for item in items)


def open_model(config: TFANetConfig, checkpoint: Path | None, size: int) -> TFANet:
    """The checkpoint's model, or one with seeded random weights, for pictures of `size`."""
    import torch
    from model_measure import at_size

    from tfanet.checkpoint import load_model
    from tfanet.model import TFANet

    with working("the model"):
        if checkpoint is not None:
            return load_model(checkpoint, image_size=size)
        torch.manual_seed(0)
        return at_size(TFANet(config).eval(), size)


def export(model: TFANet, path: Path) -> Path:
    """Export the model to `path`, held against PyTorch on one pair."""
    from tfanet_export import export_onnx

    return export_onnx(model, path, pairs=1).path


def check_onnx(model: TFANet, file: Path) -> str:
    """Whether `file` has the model's weights, as a line; `UserError` when it is another model's or size's."""
    from tfanet.checkpoint import weights_sha256
    from tfanet_engines.onnx_file import read_onnx

    with working("the ONNX file"):
        found = read_onnx(file)
        if found.config != model.config:
            raise UserError(f"{file} has another config than the model, or another image size; see --sizes")
        if found.precision != "fp32":
            raise UserError(f"{file} is {found.precision}; PyTorch runs FP32 here, so give an FP32 file")
        same = found.weights_sha256 == weights_sha256(model)
    return f"the ONNX file has {'the weights of' if same else 'other weights than'} the model in PyTorch"


def measure(
    model: TFANet,
    file: Path,
    sizes: tuple[int, ...],
    threads: int,
    repeats: int,
    onnx_growth: bool,
    folder: Path,
) -> tuple[Times, dict[str, list[Line]]]:
    """Everything in turns, then a profile of each runtime."""
    import torch
    from model_measure import (
        at_size,
        example,
        in_turns,
        no_scans,
        onnx_call,
        onnx_profile,
        torch_call,
        torch_profile,
        write_without_scans,
    )

    from tfanet.ops.native import library

    torch.set_num_threads(threads)
    feed, bare = example(model), folder / "without.onnx"
    with working("the model without scans"):
        write_without_scans(file, bare)
    in_torch = torch_call(model, feed)

    def in_torch_without() -> None:
        with no_scans():
            in_torch()

    calls = {TORCH: in_torch, WITHOUT.format(TORCH): in_torch_without}
    with working("opening ONNX Runtime"):
        calls[ONNX] = onnx_call(file, threads, feed, native=True)
        calls[WITHOUT.format(ONNX)] = onnx_call(bare, threads, feed, native=False)
        if library():
            calls[BODIES] = onnx_call(file, threads, feed, native=False)
    for size in sizes[1:]:
        grown = at_size(model, size)
        calls[AT.format(TORCH, size, size)] = torch_call(grown, example(grown))
        if onnx_growth:
            larger = export(grown, folder / f"model-{size}.onnx")
            calls[AT.format(ONNX, size, size)] = onnx_call(larger, threads, example(grown), native=True)
    seconds = in_turns(calls, repeats)
    calls.clear()
    with working("profiles"):
        profiles = {TORCH: torch_profile(in_torch), ONNX: onnx_profile(file, threads, feed, folder)}
    return Times(sizes, seconds), profiles


def times_table(times: Times) -> Table:
    """Both runtimes at the model's size."""
    columns = ("runtime", "seconds", "fastest", "slowest", "without scans", "share of the scans")
    rows = []
    for runtime in times.runtimes:
        runs, bare = times.seconds[runtime], times.median(BARE[runtime])
        figures = (times.median(runtime), min(runs), max(runs), bare)
        share = f"{100 * times.share_of_scans(runtime):.1f} %"
        rows.append([runtime, *(f"{x:.3f}" for x in figures), share])
    size = times.sizes[0]
    return Table(f"One picture of {size} x {size}", columns, rows)


def growth_table(times: Times) -> list[Table]:
    """How the time grows with the picture; no table for one size."""
    own, *others = times.sizes
    if not others:
        return []
    columns = ["runtime", f"{own} x {own}, s"]
    for size in others:
        columns += [f"{size} x {size}, s", f"growth (pixels {(size / own) ** 2:.2f})"]
    rows = []
    for runtime in (TORCH, ONNX):
        first = times.median(runtime)
        row = [runtime, f"{first:.3f}"]
        for size in others:
            if (name := AT.format(runtime, size, size)) in times.seconds:
                row += [f"{times.median(name):.3f}", f"{times.median(name) / first:.2f}"]
            else:
                row += ["–", "–"]
        rows.append(row)
    return [Table("Growth with the picture", columns, rows)]


def profile_table(runtime: str, lines: Sequence[Line]) -> Table:
    """The operators that take longest, and the others together."""
    whole = sum(line.seconds for line in lines)
    rows = [(line.operator, line.calls, line.seconds) for line in lines[:PROFILED]]
    if rest := lines[PROFILED:]:
        others = f"{len(rest)} others"
        rows.append((others, sum(line.calls for line in rest), sum(line.seconds for line in rest)))
    cells = [[name, str(calls), f"{1e3 * s:.1f}", f"{100 * s / whole:.1f} %"] for name, calls, s in rows]
    return Table(
        f"Profile of one run of {whole:.3f} s: {runtime}", ("operator", "calls", "ms", "share"), cells
    )


def ratios(times: Times, threads: int) -> list[str]:
    """The runtimes against each other, with the scans and without."""
    whole = times.median(TORCH) / times.median(ONNX)
    bare = times.median(WITHOUT.format(TORCH)) / times.median(WITHOUT.format(ONNX))
    return [
        f"{ONNX} is {whole:.2f} times as fast as {TORCH}, without the scans {bare:.2f} times; "
        f"{threads} thread(s)"
    ]


def definitions() -> list[str]:
    """What the figures mean."""
    return [
        "seconds: medians, FP32, batch 1; all that is compared ran in turns in one process",
        f"{TORCH} and {ONNX}: with our compiled scan where it was built; {BODIES}: without it",
        "without scans: the skip D x in the place of every scan; what computes the scans' inputs is kept",
        "profiles: one run each; PyTorch's operators without those they call, ONNX Runtime's Scan with its "
        "body, which the profiler slows",
    ]


if __name__ == "__main__":
    run(app)
