"""`tfanet-export onnx`, `trt` and `triton`: options and reports; the work is in `pipeline`.

Without arguments `onnx` and `trt` use the bundled tiny checkpoint.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfanet.console import new_app, run, say
from tfanet.errors import UserError
from tfanet.signature import MAX_BATCH

if TYPE_CHECKING:
    from tfanet_engines import BuildReport
    from tfanet_export.export import ExportReport
    from tfanet_export.triton_server.repository import Repository

_NEGATIVES = ("timing-cache", "plugins")
"""Flags that a rebuild command spells out when they are off."""

app = new_app("Export a checkpoint to ONNX, to a TensorRT plan, or to a Triton server.")


class BodyTarget(StrEnum):
    """The kind of runtime that the scans' function bodies are written for."""

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
Pairs = Annotated[int, typer.Option(min=1, max=1000, help="Number of pairs to verify the file on.")]
Fp16 = Annotated[bool, typer.Option("--fp16", help="Half precision; sensitive parts stay FP32.")]
PrecisionFile = Annotated[
    Path | None,
    typer.Option("--precision", help="File of blocks to keep FP32, from tfanet-eval drift --fp16 --propose."),
]
CheckHalf = Annotated[
    bool, typer.Option(help="With --fp16, check for overflow in FP16 arithmetic; slow for base on a CPU.")
]
OnnxFile = Annotated[
    Path | None, typer.Option("--onnx", help="Build from this exported file instead of a checkpoint.")
]
PlanFile = Annotated[Path | None, typer.Option("--out", "-o", help="[NAME.plan or NAME-fp16.plan]")]
PlanFp16 = Annotated[
    bool | None,
    typer.Option("--fp16/--no-fp16", help="Half precision; numerically sensitive parts stay FP32 [no]."),
]
BackendChoice = Annotated[Backend, typer.Option(help="auto: tensorrt-rtx if it is installed.")]
Recipe = Annotated[str | None, typer.Option(help="rtx4090, or a .toml file; options given here override it.")]
Gpus = Annotated[str | None, typer.Option(help="GPUs: rtx4090, sm89, rtx4090,rtx5090, current ... [rtx4090]")]
Batch = Annotated[str | None, typer.Option(help="Smallest, optimal and largest batch [1,1,8].")]
HardwareCompat = Annotated[
    str | None,
    typer.Option(help="tensorrt: none, ampere_plus or same_compute_capability [none]."),
]
VersionCompat = Annotated[
    bool | None, typer.Option("--version-compat", help="tensorrt: also for later versions.")
]
Workspace = Annotated[int | None, typer.Option(help="Limit of the builder's workspace, MiB.")]
OptLevel = Annotated[int | None, typer.Option(help="tensorrt: optimization level, 0 to 5 [3].")]
TimingCache = Annotated[
    bool | None,
    typer.Option(
        "--timing-cache/--no-timing-cache", help="tensorrt: keep the timing cache between builds [yes]."
    ),
]
Plugins = Annotated[
    bool | None, typer.Option("--plugins/--no-plugins", help="tensorrt: use tfanet's plugins [yes].")
]
Tf32 = Annotated[bool | None, typer.Option("--tf32", help="Allow TF32 in FP32 matrix products.")]


@app.command()
def onnx(
    checkpoint: Checkpoint = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="[NAME.onnx or NAME-fp16.onnx]")] = None,
    fp16: Fp16 = False,
    image_size: ImageSize = None,
    target: Annotated[
        BodyTarget, typer.Option(help="Kind of runtime that the scans are written for.")
    ] = BodyTarget.cpu,
    pairs: Pairs = 16,
    precision: PrecisionFile = None,
    check_half: CheckHalf = True,
) -> None:
    """Export to ONNX and verify ONNX Runtime against PyTorch; exit code 1 above tolerance."""
    source = _checkpoint(checkpoint)
    out = _output(out, f"{source.stem}{'-fp16' if fp16 else ''}.onnx")
    if precision and not fp16:
        raise UserError("--precision lists the blocks that stay FP32 in an FP16 model; give --fp16 with it")
    from tfanet_export.pipeline import export_checkpoint

    options = {"checkpoint": checkpoint, "out": out, "target": target.value, "fp16": fp16}
    options |= {"precision": precision, "no-check-half": not check_half, "image-size": image_size}
    report = export_checkpoint(
        source, out, target=target.value, rebuild=_command("onnx", options), fp16=fp16,
        image_size=image_size, pairs=pairs, precision=precision, check_half=check_half,
    )  # fmt: skip
    _report(report)
    say(f"next: tfanet-eval --engine {out}")


@app.command()
def trt(
    checkpoint: Checkpoint = None,
    onnx_file: OnnxFile = None,
    out: PlanFile = None,
    fp16: PlanFp16 = None,
    image_size: ImageSize = None,
    backend: BackendChoice = Backend.auto,
    recipe: Recipe = None,
    target: Gpus = None,
    batch: Batch = None,
    hardware_compat: HardwareCompat = None,
    version_compat: VersionCompat = None,
    workspace: Workspace = None,
    opt_level: OptLevel = None,
    timing_cache: TimingCache = None,
    plugins: Plugins = None,
    tf32: Tf32 = None,
    pairs: Pairs = 16,
    precision: PrecisionFile = None,
    check_half: CheckHalf = True,
) -> None:
    """Build a TensorRT plan from a checkpoint or an exported ONNX file. No GPU is needed."""
    if checkpoint and onnx_file:
        raise UserError("give --checkpoint or --onnx, not both")
    if onnx_file and precision:
        raise UserError(f"the precision of {onnx_file} is fixed; give --precision when it is exported")
    if onnx_file and image_size:
        raise UserError(f"the image size of {onnx_file} is fixed; give --image-size when it is exported")
    from tfanet_engines import build_plan
    from tfanet_engines.trt_api import find_backend
    from tfanet_export.pipeline import export_checkpoint, plan_settings, retarget_for_plan

    library = find_backend(backend)
    given = {
        "target": target, "batch": None if batch is None else _profile(batch),
        "hardware-compat": hardware_compat, "version-compat": version_compat, "workspace": workspace,
        "opt-level": opt_level, "timing-cache": timing_cache, "plugins": plugins, "tf32": tf32,
    }  # fmt: skip
    options, half = plan_settings(given, fp16, recipe, library)
    source = onnx_file or _checkpoint(checkpoint)
    out = _output(out, f"{source.stem}{'-fp16' if half and not onnx_file else ''}.plan")
    words = {
        "checkpoint": checkpoint, "onnx": onnx_file, "out": out, "backend": backend.value, "recipe": recipe,
        "fp16": fp16, "precision": precision, "no-fp16": fp16 is False, "image-size": image_size,
        "no-check-half": not check_half,
        **given, "target": options.target, "batch": ",".join(map(str, options.batch)),
    }  # fmt: skip
    rebuild = _command("trt", words)
    network = out.with_name(out.name + ".onnx")
    if onnx_file:
        retarget_for_plan(onnx_file, network, fp16=half, rebuild=rebuild)
    else:
        report = export_checkpoint(
            source, network, target="gpu", rebuild=rebuild, fp16=half,
            image_size=image_size, pairs=pairs, precision=precision, check_half=check_half,
        )  # fmt: skip
        _report(report)
    report = build_plan(network, out, options, backend=library, rebuild=rebuild, progress=True)
    _report_plan(report)
    say(f"next: tfanet-eval --engine {out}  # on the GPU it is built for")


@app.command()
def triton(
    out: Annotated[Path, typer.Argument(help="Folder of the model repository: new or empty.")],
    engine: Annotated[
        list[Path],
        typer.Option(help="An .onnx file, or a TensorRT .plan; repeat for the plans of other GPUs."),
    ],
    name: Annotated[str, typer.Option(help="Name of the model that clients call.")] = "tfanet",
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=MAX_BATCH, help="Largest batch [the plan's; 8 for ONNX].")
    ] = None,
) -> None:
    """Write a model repository for Triton Inference Server: image and expression in, mask out."""
    from tfanet.console import working
    from tfanet_export.triton_server.repository import write_repository

    with working(f"writing {out}"):
        written = write_repository(out, engine, name=name, max_batch=max_batch)
    _report_repository(written)


def _checkpoint(path: Path | None) -> Path:
    from tfanet.files import require_file
    from tfanet.weights import bundled

    return require_file(path, "checkpoint") if path else bundled("tiny")


def _output(path: Path | None, default: str) -> Path:
    """Where to write; `UserError` unless the suffix is that of `default` and the place is writable."""
    from tfanet.files import require_writable

    path, suffix = path or Path(default), Path(default).suffix
    if path.suffix != suffix:
        raise UserError(f"{path} must end in {suffix}")
    require_writable(path)
    return path


def _profile(text: str) -> tuple[int, int, int]:
    try:
        low, optimal, high = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--batch takes three numbers such as 1,1,8, not {text!r}") from error
    return low, optimal, high


def _command(verb: str, options: Mapping[str, object]) -> str:
    """The command line that repeats this run; options that are None or an unset flag are left out."""
    words = ["tfanet-export", verb]
    for name, value in options.items():
        if value is None or (value is False and name not in _NEGATIVES):
            continue
        flag = f"--no-{name}" if value is False else f"--{name}"
        words += [flag] if isinstance(value, bool) else [flag, str(value)]
    return shlex.join(words)


def _report(report: ExportReport) -> None:
    nodes = sum(report.nodes.values())
    operations = ", ".join(f"{count} {name}" for name, count in report.nodes.items() if "::" in name)
    parity = report.parity
    say(f"{report.path}: {report.precision}, {report.bytes / 1e6:.1f} MB, {nodes} nodes ({operations})")
    say(
        f"verified on {parity.pairs} pairs in ONNX Runtime: max logit error {parity.max_abs_error:.2e}, "
        f"mask agreement {parity.mask_agreement:.4f}, mIoU {report.miou:.3f} "
        f"(PyTorch {report.reference_miou:.3f})"
    )
    say(_timing(report.seconds, report.peak_memory_bytes))


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
        say("layer types are not known here: the engine opens only on the GPU it is built for")
    inputs = ", ".join(f"{name} {dtype} {[*shape]}" for name, dtype, shape in report.bindings)
    say(f"inputs and output as in the signature: {inputs}; batch {', '.join(map(str, report.batch))}")
    if report.plugin_layers:
        say(f"{report.plugin_layers} plugin layers: every tfanet node is a plugin")
    say(_timing(report.seconds, report.peak_memory_bytes))


def _report_repository(written: Repository) -> None:
    sidecar, plan = written.sidecar, written.backend == "tensorrt"
    say(
        f"{written.path}: clients call {written.client_model}; {written.core_model} computes, "
        f"{sidecar.precision}, backend {written.backend}, batches of up to {written.max_batch}"
    )
    say('the server\'s Python needs: pip install "numpy<2" pillow ftfy regex')
    if plan:
        say(f"the server's TensorRT must be {sidecar.builder_version}: other versions reject the plan")
    say(f"next: tritonserver --model-repository={written.path}")


def _timing(seconds: float, peak: int) -> str:
    return f"took {seconds:.0f} s" + (f", peak memory {peak / 1e9:.1f} GB" if peak else "")


def main() -> None:
    run(app)
