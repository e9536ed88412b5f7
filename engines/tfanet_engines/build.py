"""ONNX -> plan: a strongly typed engine for the named GPUs. TensorRT-RTX builds it without a GPU."""

from __future__ import annotations

import dataclasses
import shlex
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tfanet.console import peak_memory
from tfanet.deprecation import renamed_arguments
from tfanet.errors import UserError, VerificationError
from tfanet.files import atomic_path, require_writable, sha256
from tfanet.signature import BATCH, Signature, signature_of
from tfanet_engines import builder_process, trust
from tfanet_engines.builder import Bindings, Built, Progress, Request
from tfanet_engines.onnx_file import OnnxFile, read_onnx
from tfanet_engines.options import Batch, BuildOptions
from tfanet_engines.proof import EngineLayers, PrecisionProof, expected_half_share
from tfanet_engines.sidecar import Sidecar, sidecar_path
from tfanet_engines.targets import capability_here, compute_capabilities, sm
from tfanet_engines.trt_api import MODULES, Backend, find_backend

SHARE_TOLERANCE = 0.02
"""Allowed difference between expected and counted FP16 share: FP32 islands, folded constants."""


@dataclass(frozen=True)
class BuildReport:
    """A finished plan and the proof of its precision."""

    plan: Path
    sidecar: Path
    backend: Backend
    builder_version: str
    compute_capabilities: tuple[str, ...]
    """As in the sidecar."""
    precision: Literal["fp32", "fp16"]
    proof: PrecisionProof
    inspected: EngineLayers | None
    """Layers of the finished engine; None if it cannot be opened, which requires the GPU it is for."""
    plugin_layers: int
    """Layers that run our kernels; 0 for TensorRT-RTX, which does not support these plugins."""
    bindings: Bindings
    """Name, dtype and shape of every input and output, as in `tfanet.signature`; -1 is the batch."""
    batch: Batch
    """Smallest, optimal and largest batch."""
    size_bytes: int
    seconds: float
    peak_memory_bytes: int
    """Of the builder's subprocess or of this process, whichever is larger. The latter includes an export."""


@renamed_arguments(further_outputs="extra_outputs")
def build_plan(
    onnx_path: str | Path,
    plan_path: str | Path,
    options: BuildOptions = BuildOptions(),
    *,
    backend: str = "auto",
    rebuild: str | None = None,
    progress: bool = False,
    extra_outputs: Sequence[str] = (),
) -> BuildReport:
    """Build `plan_path` and its sidecar from an ONNX file that `tfanet-export onnx` wrote.

    Args:
        backend: `tensorrt-rtx` (for any GPUs of `targets.RTX_CAPABILITIES`, no GPU needed), `tensorrt` (for
            the GPU of this machine) or `auto`.
        rebuild: the command for the sidecar that builds the plan again; by default one that calls this.
        progress: show the builder's phases as bars on stderr.
        extra_outputs: names of the network's outputs after the mask logits. Such a plan is for inspection;
            `open_engine` raises `UserError` for it.

    The build runs in a subprocess. Raises `UserError` for invalid arguments and files, `VerificationError` if
    the network does not parse or build, crashes the builder, or has not the bindings and precision of the
    ONNX file; `KeyboardInterrupt` on Ctrl-C. In each case nothing is left under `plan_path`.
    """
    name = find_backend(backend)
    options.require(name)
    capabilities = capabilities_for(name, options)
    plan_path = Path(plan_path)
    require_writable(plan_path)
    trust.require_usable()
    source = read_onnx(onnx_path)
    plugins = source.plugin_layers if name == "tensorrt" and options.plugins is not False else ()
    request = Request(source.path, name, capabilities, plugins, options)
    start = time.perf_counter()
    with atomic_path(plan_path) as temporary, _progress_bars(progress) as on_progress:
        built, subprocess_memory = builder_process.run(request, temporary, on_progress)
        _check(source, built, extra_outputs)
    if built.warning:
        warnings.warn(built.warning, RuntimeWarning, stacklevel=3)  # the caller of the decorated function
    report = BuildReport(
        plan=plan_path,
        sidecar=sidecar_path(plan_path),
        backend=name,
        builder_version=built.version,
        compute_capabilities=("8.0+",) if options.hardware_compat == "ampere_plus" else capabilities,
        precision=source.precision,
        proof=built.proof,
        inspected=built.inspected,
        plugin_layers=len(plugins),
        bindings=built.bindings,
        batch=options.batch,
        size_bytes=plan_path.stat().st_size,
        seconds=time.perf_counter() - start,
        peak_memory_bytes=max(subprocess_memory, peak_memory()),
    )
    command = rebuild or _rebuild_command(source.path, plan_path, name, options)
    sidecar = _sidecar(source, report, options, extra_outputs, command)
    try:
        sidecar.write(plan_path)
    except BaseException:
        plan_path.unlink()  # a plan without its sidecar cannot be opened
        raise
    trust.remember(sidecar.file_sha256)
    return report


def _sidecar(
    source: OnnxFile, report: BuildReport, options: BuildOptions, extra_outputs: Sequence[str], rebuild: str
) -> Sidecar:
    """The sidecar of a finished plan; `rebuild` is the command that builds it again."""
    proof = dataclasses.asdict(report.proof) | {
        "plugin_layers": report.plugin_layers,
        "engine": dataclasses.asdict(report.inspected) if report.inspected else None,
        "parity_of_the_onnx_file": source.sidecar.parity if source.sidecar else None,
    }
    return Sidecar.of(
        source.config,
        kind="plan",
        weights_sha256=source.weights_sha256,
        precision=source.precision,
        proof=proof | ({"further_outputs": [*extra_outputs]} if extra_outputs else {}),
        builder=MODULES[report.backend],
        builder_version=report.builder_version,
        compute_capabilities=report.compute_capabilities,
        version_compatible=options.version_compat,
        batch=options.batch,
        onnx_sha256=source.sha256,
        file_sha256=sha256(report.plan),
        cost={
            "seconds": round(report.seconds, 1),
            "peak_memory_bytes": report.peak_memory_bytes,
            "bytes": report.size_bytes,
            "layers": report.proof.layers,
        },
        rebuild=rebuild,
    )


def capabilities_for(backend: Backend, options: BuildOptions) -> tuple[str, ...]:
    """Compute capabilities to build for, as `8.9`; `UserError` if full TensorRT lacks the target GPU."""
    if options.target == "current":
        targets = (capability_here(),)
        if backend == "tensorrt-rtx":
            compute_capabilities(targets[0])
        return targets
    targets = compute_capabilities(options.target)
    if backend == "tensorrt":
        import torch

        here = capability_here() if torch.cuda.is_available() else None
        if targets != (here,):
            raise UserError(
                f"tensorrt builds for the GPU it runs on ({sm(here) if here else 'none here'}), not for "
                f"{', '.join(map(sm, targets))}; use --backend tensorrt-rtx, or --target current on that GPU"
            )
    return targets


def _check(source: OnnxFile, built: Built, extra: Sequence[str]) -> None:
    """Raise `VerificationError` unless the network has the signature's bindings and the file's precision."""
    expected, proof = _bindings_of(signature_of(source.config)), built.proof
    names = tuple(name for name, _, _ in built.bindings[len(expected) :])
    if built.bindings[: len(expected)] != expected or names != tuple(extra):
        raise VerificationError(f"the network of {source.path} has bindings {built.bindings}, not {expected}")
    if source.sidecar and source.sidecar.precision != source.precision:
        raise VerificationError(
            f"{source.path} is {source.precision} by its weights, {source.sidecar.precision} by its sidecar"
        )
    _check_share(source, proof)
    if source.precision == "fp16" and built.inspected and not built.inspected.half:
        raise VerificationError(
            f"{source.path} is fp16, but none of the engine's {built.inspected.layers} layers outputs FP16"
        )


def _check_share(source: OnnxFile, proof: PrecisionProof) -> None:
    """Raise `VerificationError` unless the expected share of the network's weights is FP16."""
    counted = f"({proof.half_weights} of {proof.half_weights + proof.float_weights})"
    if source.keep_fp32:
        expected = expected_half_share(source.config, source.keep_fp32)
        if abs(proof.half_weight_share - expected) > SHARE_TOLERANCE:
            raise VerificationError(
                f"{source.path} keeps {len(source.keep_fp32)} blocks FP32, so {expected:.1%} of the "
                f"weights should be FP16, but in the network {proof.half_weight_share:.1%} are {counted}"
            )
    elif (proof.half_weight_share > 0.5) != (source.precision == "fp16"):
        raise VerificationError(
            f"{source.path} is {source.precision}, but {proof.half_weight_share:.1%} of the network's "
            f"weights are FP16 {counted}"
        )


def _bindings_of(signature: Signature) -> Bindings:
    specs = (*signature.inputs, *signature.outputs)
    return tuple((s.name, s.dtype, tuple(-1 if n == BATCH else int(n) for n in s.shape)) for s in specs)


def _rebuild_command(onnx: Path, plan: Path, backend: str, options: BuildOptions) -> str:
    changed = {
        field.name: value
        for field in dataclasses.fields(options)
        if (value := getattr(options, field.name)) != field.default
    }
    words = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    call = f"build_plan({str(onnx)!r}, {str(plan)!r}, BuildOptions({words}), backend={backend!r})"
    return f"python -c {shlex.quote(f'from tfanet_engines import BuildOptions, build_plan; {call}')}"


@contextmanager
def _progress_bars(show: bool) -> Iterator[Progress]:
    """Yields a progress callback that draws the builder's phases as bars on stderr, if `show`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not show) as bars:

        def draw(phase: str, done: int, steps: int) -> None:
            if not steps:
                if phase in tasks:
                    bars.remove_task(tasks.pop(phase))
            elif phase in tasks:
                bars.update(tasks[phase], completed=done)
            else:
                tasks[phase] = bars.add_task(phase, total=steps)

        yield draw
