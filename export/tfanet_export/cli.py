"""`tfanet-export onnx`, `trt` and `triton`; the first two without arguments, the bundled tiny checkpoint."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tfanet.console import new_app, run, say
from tfanet.errors import UserError
from tfanet_export.triton_cli import triton

if TYPE_CHECKING:
    from tfanet_engines import BuildReport
    from tfanet_export.export import ExportReport

_NEGATIVES = ("timing-cache", "plugins")
"""Flags that are said when they are off."""

app = new_app("Take a checkpoint to ONNX, on to a TensorRT plan, or to a server.")
app.command()(triton)


class BodyTarget(StrEnum):
    """Which runtime the scan's function body is written for."""

    cpu = "cpu"
    gpu = "gpu"


class Backend(StrEnum):
    """The library that builds the plan."""

    auto = "auto"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", "-c", help="A .safetensors file [the bundled tiny model].")
]
ImageSize = Annotated[
    int | None, typer.Option(help="Side of the square image, a multiple of 32 [the checkpoint's].")
]
Pairs = Annotated[int, typer.Option(min=1, max=1000, help="Pairs to verify the file on.")]
Fp16 = Annotated[bool, typer.Option("--fp16", help="Half precision with FP32 islands.")]
PrecisionFile = Annotated[
    Path | None,
    typer.Option("--precision", help="Blocks to keep FP32 (tfanet-eval drift --fp16 --propose writes it)."),
]
CheckHalf = Annotated[
    bool, typer.Option(help="With --fp16, look for overflow in FP16 arithmetic; slow at base on a CPU.")
]


@app.command()
def onnx(
    checkpoint: Checkpoint = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="[NAME.onnx or NAME-fp16.onnx]")] = None,
    fp16: Fp16 = False,
    image_size: ImageSize = None,
    target: Annotated[
        BodyTarget, typer.Option(help="Runtime that the scan is written for.")
    ] = BodyTarget.cpu,
    pairs: Pairs = 16,
    precision: PrecisionFile = None,
    check_half: CheckHalf = True,
) -> None:
    """Export to ONNX and verify the file with ONNX Runtime against PyTorch; exit 1 above tolerance."""
    from tfanet.files import require_writable

    source = _checkpoint(checkpoint)
    out = out or Path(f"{source.stem}{'-fp16' if fp16 else ''}.onnx")
    if out.suffix != ".onnx":
        raise UserError(f"{out} must end in .onnx")
    require_writable(out)
    if precision and not fp16:
        raise UserError("--precision says which blocks stay FP32 in an FP16 model; give --fp16 with it")
    options = {"checkpoint": checkpoint, "out": out, "target": target.value, "fp16": fp16}
    options |= {"precision": precision, "no-check-half": not check_half}
    command = _command("onnx", **options, **{"image-size": image_size})
    report = _export(
        source, out, fp16=fp16, target=target.value, pairs=pairs, image_size=image_size, rebuild=command,
        precision=precision, check_half=check_half,
    )  # fmt: skip
    _report(report)
    say(f"next: tfanet-eval --engine {out}")


@app.command()
def trt(
    checkpoint: Checkpoint = None,
    onnx_file: Annotated[
        Path | None, typer.Option("--onnx", help="Build from this exported file, not from a checkpoint.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="[NAME.plan or NAME-fp16.plan]")] = None,
    fp16: Annotated[
        bool | None, typer.Option("--fp16/--no-fp16", help="Half precision with FP32 islands [no].")
    ] = None,
    image_size: ImageSize = None,
    backend: Annotated[Backend, typer.Option(help="auto: tensorrt-rtx if installed.")] = Backend.auto,
    recipe: Annotated[
        str | None, typer.Option(help="rtx4090, or a .toml file: options, which those given here override.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="GPUs: rtx4090, sm89, rtx4090,rtx5090, current ... [rtx4090]")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Smallest, usual and largest batch [1,1,8].")] = None,
    hardware_compat: Annotated[
        str | None,
        typer.Option(help="tensorrt: none, ampere_plus or same_compute_capability [none]."),
    ] = None,
    version_compat: Annotated[
        bool | None, typer.Option("--version-compat", help="tensorrt: for later versions, too.")
    ] = None,
    workspace: Annotated[int | None, typer.Option(help="MiB that layers may use.")] = None,
    opt_level: Annotated[int | None, typer.Option(help="tensorrt: 0 to 5, longer search [3].")] = None,
    timing_cache: Annotated[
        bool | None,
        typer.Option("--timing-cache/--no-timing-cache", help="tensorrt: keep kernels' times [yes]."),
    ] = None,
    plugins: Annotated[
        bool | None, typer.Option("--plugins/--no-plugins", help="tensorrt: run our kernels [yes].")
    ] = None,
    tf32: Annotated[bool | None, typer.Option("--tf32", help="FP32 products with 10 bits.")] = None,
    pairs: Pairs = 16,
    precision: PrecisionFile = None,
    check_half: CheckHalf = True,
) -> None:
    """Build a TensorRT plan from a checkpoint or an exported ONNX file. No GPU is needed."""
    from tfanet.files import require_writable
    from tfanet_engines.build import build_plan, capabilities_for
    from tfanet_engines.options import BuildOptions, read_recipe
    from tfanet_engines.trt_api import find_backend

    if checkpoint and onnx_file:
        raise UserError("give --checkpoint or --onnx, not both")
    if onnx_file and precision:
        raise UserError(f"the precision of {onnx_file} is fixed; give --precision when it is exported")
    if onnx_file and image_size:
        raise UserError(f"the image size of {onnx_file} is fixed; give --image-size when it is exported")
    library = find_backend(backend)
    given = {
        "target": target, "batch": None if batch is None else _profile(batch),
        "hardware-compat": hardware_compat, "version-compat": version_compat, "workspace": workspace,
        "opt-level": opt_level, "timing-cache": timing_cache, "plugins": plugins, "tf32": tf32,
    }  # fmt: skip
    values = read_recipe(recipe, library) if recipe else {}
    half = values.pop("fp16", False) if fp16 is None else fp16
    values.pop("fp16", None)
    BuildOptions.of(values, library, f"recipe {recipe}")  # its own mistakes are said to be its own
    chosen = BuildOptions.of(values | {k: v for k, v in given.items() if v is not None}, library)
    capabilities_for(library, chosen)
    source = onnx_file or _checkpoint(checkpoint)
    out = out or Path(f"{source.stem}{'-fp16' if half and not onnx_file else ''}.plan")
    if out.suffix != ".plan":
        raise UserError(f"{out} must end in .plan")
    require_writable(out)
    command = _command(
        "trt", checkpoint=checkpoint, onnx=onnx_file, out=out, backend=backend.value, recipe=recipe,
        fp16=fp16, precision=precision,
        **{"no-fp16": fp16 is False, "image-size": image_size, "no-check-half": not check_half},
        **(given | {"target": chosen.target, "batch": ",".join(map(str, chosen.batch))}),
    )  # fmt: skip
    network = out.with_name(out.name + ".onnx")
    if onnx_file:
        _retarget(onnx_file, network, half, command)
    else:
        report = _export(
            source, network, fp16=half, target="gpu", pairs=pairs, image_size=image_size, rebuild=command,
            precision=precision, check_half=check_half,
        )  # fmt: skip
        _report(report)
    report = build_plan(network, out, chosen, backend=library, rebuild=command, progress=True)
    _report_plan(report)
    say(f"next: tfanet-eval --engine {out}  # on the GPU it is built for")


def _checkpoint(path: Path | None) -> Path:
    from tfanet.files import require_file
    from tfanet.weights import bundled

    return require_file(path, "checkpoint") if path else bundled("tiny")


def _profile(text: str) -> tuple[int, int, int]:
    try:
        low, usual, high = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--batch takes three numbers such as 1,1,8, not {text!r}") from error
    return low, usual, high


def _command(verb: str, **options: object) -> str:
    """The command line that does the same again; options that are None or an unset flag are left out."""
    words = ["tfanet-export", verb]
    for name, value in options.items():
        if value is None or (value is False and name not in _NEGATIVES):
            continue
        flag = f"--no-{name}" if value is False else f"--{name}"
        words += [flag] if isinstance(value, bool) else [flag, str(value)]
    return shlex.join(words)


def _export(
    checkpoint: Path,
    out: Path,
    *,
    fp16: bool,
    target: Literal["cpu", "gpu"],
    pairs: int,
    image_size: int | None,
    rebuild: str,
    precision: Path | None,
    check_half: bool,
) -> ExportReport:
    from tfanet.checkpoint import load_model
    from tfanet_export.export import export_onnx
    from tfanet_export.precision import Precision

    model = load_model(checkpoint, image_size=image_size)
    return export_onnx(
        model, out, fp16=fp16, target=target, pairs=pairs, rebuild=rebuild,
        precision_file=Precision.read(precision) if precision else None, check_half=check_half,
    )  # fmt: skip


def _retarget(source: Path, network: Path, fp16: bool, command: str) -> None:
    from tfanet_engines.onnx_file import read_onnx

    precision = read_onnx(source).precision
    if fp16 and precision != "fp16":
        raise UserError(
            f"{source} is {precision}: precision is a property of the graph; export it with --fp16"
        )

    from tfanet_export.export import retarget

    retarget(source, network, "gpu", rebuild=command)


def _report(report: ExportReport) -> None:
    nodes = sum(report.nodes.values())
    own = ", ".join(f"{count} {name}" for name, count in report.nodes.items() if "::" in name)
    parity = report.parity
    say(f"{report.path}: {report.precision}, {report.bytes / 1e6:.1f} MB, {nodes} nodes ({own})")
    say(
        f"verified on {parity.pairs} pairs in ONNX Runtime: max logit error {parity.max_abs_error:.2e}, "
        f"mask agreement {parity.mask_agreement:.4f}, mIoU {report.miou:.3f} "
        f"(PyTorch {report.reference_miou:.3f})"
    )
    say(_cost(report.seconds, report.peak_memory_bytes))


def _report_plan(report: BuildReport) -> None:
    proof = report.proof
    say(
        f"{report.plan}: {report.precision} for compute capability {', '.join(report.compute_capabilities)}, "
        f"{report.size_bytes / 1e6:.1f} MB, {report.backend} {report.builder_version}, {proof.layers} layers"
    )
    say(
        f"in the network: {proof.half_weight_share:.1%} of the weights and {proof.half_layer_share:.1%} "
        f"of the layers' outputs are FP16"
    )
    if report.inspected:
        say(f"in the engine: {report.inspected.half_share:.1%} of {report.inspected.layers} layers give FP16")
    else:
        say("the engine itself opens on the GPU it is for, and only there")
    inputs = ", ".join(f"{name} {dtype} {[*shape]}" for name, dtype, shape in report.bindings)
    say(f"inputs and output as promised: {inputs}; batch {', '.join(map(str, report.batch))}")
    if report.plugin_layers:
        say(f"{report.plugin_layers} plugin layers: every tfanet node runs its kernels")
    say(_cost(report.seconds, report.peak_memory_bytes))


def _cost(seconds: float, peak: int) -> str:
    return f"took {seconds:.0f} s" + (f", peak memory {peak / 1e9:.1f} GB" if peak else "")


def main() -> None:
    run(app)
