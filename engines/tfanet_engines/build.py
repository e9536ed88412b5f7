"""ONNX -> plan: a strongly typed engine for named GPUs, built without one by TensorRT-RTX."""

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
from tfanet.errors import UserError, VerificationError
from tfanet.files import atomic_path, require_writable, sha256
from tfanet.signature import BATCH, Signature, signature_of
from tfanet_engines import builder_process, trust
from tfanet_engines.builder import Bindings, Built, Progress, Request
from tfanet_engines.onnx_file import OnnxFile, read_onnx
from tfanet_engines.options import Batch, BuildOptions
from tfanet_engines.proof import EngineLayers, PrecisionProof, expected_half_share
from tfanet_engines.sidecar import Sidecar
from tfanet_engines.targets import capability_here, compute_capabilities, sm
from tfanet_engines.trt_api import MODULES, Backend, find_backend

SHARE_TOLERANCE = 0.02
"""Between the expected share of half weights and the network's: FP32 islands, folded constants."""


@dataclass(frozen=True)
class BuildReport:
    """What was built and what proves it."""

    plan: Path
    sidecar: Path
    backend: Backend
    builder_version: str
    compute_capabilities: tuple[str, ...]
    """As in the sidecar."""
    precision: Literal["fp32", "fp16"]
    proof: PrecisionProof
    inspected: EngineLayers | None
    """Of the finished engine; None where it cannot be opened, which takes the GPU that it is for."""
    plugin_layers: int
    """Layers that run our kernels; 0 for TensorRT-RTX, which has no such plugins."""
    bindings: Bindings
    """Name, dtype and shape of every input and output, as `tfanet.signature` has them; -1 is the batch."""
    batch: Batch
    """Smallest, usual and largest batch."""
    size_bytes: int
    seconds: float
    peak_memory_bytes: int
    """Of the builder's process, or of this one, an export before the build included, if that was larger."""


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

    `backend` is `tensorrt-rtx` (for any GPUs of `targets.RTX_CAPABILITIES`, none needed here), `tensorrt`
    (for the GPU of this machine) or `auto`. `rebuild` is the command that the sidecar names; by default one
    that calls this function. The build runs in a process of its own. `extra_outputs` names what the network
    gives besides the mask logits: a plan to look into, which `open_engine` refuses.

    Raises `UserError` for bad arguments and files, `VerificationError` when the network does not parse, does
    not build, crashes the builder, or is not what the ONNX file promised; `KeyboardInterrupt` on Ctrl-C. In
    each case nothing is left under `plan_path`.
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
    with atomic_path(plan_path) as temporary, _bars(progress) as show:
        built, child_memory = builder_process.run(request, temporary, show)
        _check(source, built, extra_outputs)
    if built.warning:
        warnings.warn(built.warning, RuntimeWarning, stacklevel=2)
    seconds = time.perf_counter() - start

    memory = max(child_memory, peak_memory())
    served = ("8.0+",) if options.hardware_compat == "ampere_plus" else capabilities
    onnx_parity = source.sidecar.parity if source.sidecar else None
    inspected = dataclasses.asdict(built.inspected) if built.inspected else None
    sidecar = Sidecar.of(
        source.config,
        kind="plan",
        weights_sha256=source.weights_sha256,
        precision=source.precision,
        proof=dataclasses.asdict(built.proof)
        | {"plugin_layers": len(plugins), "engine": inspected, "parity_of_the_onnx_file": onnx_parity}
        | ({"extra_outputs": [*extra_outputs]} if extra_outputs else {}),
        builder=MODULES[name],
        builder_version=built.version,
        compute_capabilities=served,
        version_compatible=options.version_compat,
        batch=options.batch,
        onnx_sha256=source.sha256,
        file_sha256=sha256(plan_path),
        cost={
            "seconds": round(seconds, 1),
            "peak_memory_bytes": memory,
            "bytes": plan_path.stat().st_size,
            "layers": built.proof.layers,
        },
        rebuild=rebuild or _rebuild_command(source.path, plan_path, name, options),
    )
    try:
        written = sidecar.write(plan_path)
    except BaseException:
        plan_path.unlink()  # without its sidecar it is none
        raise
    trust.remember(sidecar.file_sha256)
    return BuildReport(
        plan=plan_path,
        sidecar=written,
        backend=name,
        builder_version=built.version,
        compute_capabilities=served,
        precision=source.precision,
        proof=built.proof,
        inspected=built.inspected,
        plugin_layers=len(plugins),
        bindings=built.bindings,
        batch=options.batch,
        size_bytes=plan_path.stat().st_size,
        seconds=seconds,
        peak_memory_bytes=memory,
    )


def capabilities_for(backend: Backend, options: BuildOptions) -> tuple[str, ...]:
    """The GPUs to build for, as `8.9`; `UserError` where full TensorRT is not on its GPU."""
    if options.target == "current":
        wanted = (capability_here(),)
        if backend == "tensorrt-rtx":
            compute_capabilities(wanted[0])
        return wanted
    wanted = compute_capabilities(options.target)
    if backend == "tensorrt":
        import torch

        here = capability_here() if torch.cuda.is_available() else None
        if wanted != (here,):
            raise UserError(
                f"tensorrt builds for the GPU it runs on ({sm(here) if here else 'none here'}), not for "
                f"{', '.join(map(sm, wanted))}; use --backend tensorrt-rtx, or --target current on that GPU"
            )
    return wanted


def _check(source: OnnxFile, built: Built, extra: Sequence[str]) -> None:
    """Raise `VerificationError` unless the network has the promised bindings and precision."""
    promised, proof = _promised(signature_of(source.config)), built.proof
    found = tuple(name for name, _, _ in built.bindings[len(promised) :])
    if built.bindings[: len(promised)] != promised or found != tuple(extra):
        raise VerificationError(f"the network of {source.path} has bindings {built.bindings}, not {promised}")
    if source.sidecar and source.sidecar.precision != source.precision:
        raise VerificationError(
            f"{source.path} is {source.precision} by its weights, {source.sidecar.precision} by its sidecar"
        )
    _check_share(source, proof)
    if source.precision == "fp16" and built.inspected and not built.inspected.half:
        raise VerificationError(
            f"{source.path} is fp16, but none of the engine's {built.inspected.layers} layers gives FP16"
        )


def _check_share(source: OnnxFile, proof: PrecisionProof) -> None:
    """Raise `VerificationError` unless as many of the network's weights are half precision as were to be."""
    counted = f"({proof.half_weights} of {proof.half_weights + proof.float_weights})"
    if source.keep_fp32:
        expected = expected_half_share(source.config, source.keep_fp32)
        if abs(proof.half_weight_share - expected) > SHARE_TOLERANCE:
            raise VerificationError(
                f"{source.path} keeps {len(source.keep_fp32)} blocks FP32, which leaves {expected:.1%} of "
                f"the weights half precision, but in the network {proof.half_weight_share:.1%} are {counted}"
            )
    elif (proof.half_weight_share > 0.5) != (source.precision == "fp16"):
        raise VerificationError(
            f"{source.path} is {source.precision}, but {proof.half_weight_share:.1%} of the network's "
            f"weights are half precision {counted}"
        )


def _promised(signature: Signature) -> Bindings:
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
def _bars(show: bool) -> Iterator[Progress]:
    """Yield what draws the builder's phases as bars on stderr, if `show`."""
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
