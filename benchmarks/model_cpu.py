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
from options import RESULTS, OutOption, ThreadsOption, check_threads
from report import Table, machine, show, write

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
app = new_app("Time the whole model in PyTorch and ONNX Runtime on this machine's CPU.")


@dataclass(frozen=True)
class Times:
    """Seconds of every timed run by name; `sizes` are image sizes, the model's first."""

    sizes: tuple[int, ...]
    seconds: Mapping[str, Sequence[float]]

    @property
    def runtimes(self) -> list[str]:
        """The measured runtimes, with scans."""
        return [runtime for runtime in BARE if runtime in self.seconds]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def share_of_scans(self, runtime: str) -> float:
        """Share of the scans in the runtime's time, 0..1."""
        return 1 - self.median(BARE[runtime]) / self.median(runtime)


@app.command()
def model_cpu(
    preset: Annotated[str, typer.Option(help="tiny or base, with random weights.")] = "base",
    checkpoint: Annotated[Path | None, typer.Option(help="A .safetensors file instead of a preset.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="Its FP32 ONNX file [exported].")] = None,
    sizes: Annotated[
        str, typer.Option(help="Image sizes: the model's, then others [the model's, twice that].")
    ] = "",
    threads: ThreadsOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs after the first.")] = 5,
    onnx_growth: Annotated[
        bool, typer.Option("--onnx-growth", help="ONNX Runtime at the other sizes too.")
    ] = False,
    out: OutOption = RESULTS,
) -> None:
    """Time both runtimes in turns, with and without scans and at other sizes; profile both."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler warns if there is no GPU
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
    data = {
        "sizes": chosen,
        "seconds": times.seconds,
        "share of the scans": {runtime: times.share_of_scans(runtime) for runtime in times.runtimes},
        "profiles": {runtime: [line._asdict() for line in lines] for runtime, lines in profiles.items()},
    }
    show(tables, notes, write(f"model_cpu-{name}", out, about, tables, notes, data))
    say("next: python benchmarks/scan_cpu.py")


def read_config(preset: str, checkpoint: Path | None) -> TFANetConfig:
    """The config of the checkpoint if given, else the preset."""
    if checkpoint is None:
        return known_preset(preset)
    from tfanet.checkpoint import load_config

    return load_config(checkpoint)


def parse_sizes(text: str, config: TFANetConfig) -> tuple[int, ...]:
    """Comma-separated sizes, by default the config's and twice that; `UserError` for an invalid one."""
    if not text:
        return config.image_size, 2 * config.image_size
    items = [item.strip() for item in text.split(",")]
    if not all(item.isdecimal() for item in items):
        raise UserError(f"--sizes takes whole numbers, comma-separated, not {text!r}")
    return tuple(dataclasses.replace(config, image_size=int(item)).image_size for item in items)


def open_model(config: TFANetConfig, checkpoint: Path | None, size: int) -> TFANet:
    """The checkpoint's model, or one with seeded random weights, for images of `size`."""
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
    """Export the model to `path`, verified on one pair."""
    from tfanet_export import export_onnx

    return export_onnx(model, path, pairs=1).path


def check_onnx(model: TFANet, file: Path) -> str:
    """A line that says whether `file` has the model's weights.

    Raises `UserError` if its config, image size or precision differs.
    """
    from tfanet.checkpoint import weights_sha256
    from tfanet_engines.onnx_file import read_onnx

    with working("the ONNX file"):
        network = read_onnx(file)
        if network.config != model.config:
            raise UserError(f"{file} has another config or image size than the model; see --sizes")
        if network.precision != "fp32":
            raise UserError(f"{file} is {network.precision}; give an FP32 file")
        same = network.weights_sha256 == weights_sha256(model)
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
    """Time everything in turns, then profile each runtime."""
    import torch
    from inputs import model_inputs
    from model_measure import (
        at_size,
        no_scans,
        onnx_profile,
        torch_call,
        torch_profile,
        write_without_scans,
    )
    from onnx_cpu import onnx_call
    from timing import in_turns

    from tfanet.ops.native import library

    torch.set_num_threads(threads)
    feed, bare = model_inputs(model.config), folder / "without.onnx"
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
        resized = at_size(model, size)
        calls[AT.format(TORCH, size, size)] = torch_call(resized, model_inputs(resized.config))
        if onnx_growth:
            resized_file = export(resized, folder / f"model-{size}.onnx")
            calls[AT.format(ONNX, size, size)] = onnx_call(
                resized_file, threads, model_inputs(resized.config), native=True
            )
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
        cells = (times.median(runtime), min(runs), max(runs), bare)
        share = f"{100 * times.share_of_scans(runtime):.1f} %"
        rows.append([runtime, *(f"{x:.3f}" for x in cells), share])
    size = times.sizes[0]
    return Table(f"One image of {size} x {size}", columns, rows)


def growth_table(times: Times) -> list[Table]:
    """How the time grows with the image size; no table for one size."""
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
    return [Table("Growth with the image size", columns, rows)]


def profile_table(runtime: str, lines: Sequence[Line]) -> Table:
    """The operators that take longest, and the sum of the others."""
    total = sum(line.seconds for line in lines)
    rows = [(line.operator, line.calls, line.seconds) for line in lines[:PROFILED]]
    if rest := lines[PROFILED:]:
        others = f"{len(rest)} others"
        rows.append((others, sum(line.calls for line in rest), sum(line.seconds for line in rest)))
    cells = [[name, str(calls), f"{1e3 * s:.1f}", f"{100 * s / total:.1f} %"] for name, calls, s in rows]
    return Table(
        f"Profile of one run of {total:.3f} s: {runtime}", ("operator", "calls", "ms", "share"), cells
    )


def ratios(times: Times, threads: int) -> list[str]:
    """The speedup of ONNX Runtime over PyTorch, with and without the scans."""
    full = times.median(TORCH) / times.median(ONNX)
    bare = times.median(WITHOUT.format(TORCH)) / times.median(WITHOUT.format(ONNX))
    return [
        f"{ONNX} is {full:.2f} times as fast as {TORCH}, without the scans {bare:.2f} times; "
        f"{threads} thread(s)"
    ]


def definitions() -> list[str]:
    """What the tables show."""
    return [
        "seconds: medians, FP32, batch 1; the runs took turns in one process",
        f"{TORCH} and {ONNX}: with our compiled scan if it was built; {BODIES}: without it",
        "without scans: only the skip connection D x of every scan; their inputs are still computed",
        "profiles: one run each; PyTorch's operators without the operators they call; ONNX Runtime's Scan "
        "with its body, which the profiler slows down",
    ]


if __name__ == "__main__":
    run(app)
