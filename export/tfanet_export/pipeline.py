"""From a checkpoint file to an ONNX file or a TensorRT plan: the functions behind `tfanet-export`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet.errors import UserError
from tfanet_export.export import VERIFICATION_PAIRS, ExportReport, export_onnx, retarget

if TYPE_CHECKING:
    from tfanet_engines import BuildOptions, BuildReport
    from tfanet_engines.trt_api import Backend
    from tfanet_plugins.operations import Target


@dataclass(frozen=True)
class ExportSettings:
    """How a checkpoint is exported; see `export_onnx`."""

    fp16: bool = False
    image_size: int | None = None
    """Side of the square image; by default the checkpoint's."""
    pairs: int = VERIFICATION_PAIRS
    precision: Path | None = None
    """The precision file, which lists the blocks that stay FP32."""
    check_half: bool = True


def checkpoint_to_onnx(
    checkpoint: Path,
    out: Path,
    settings: ExportSettings = ExportSettings(),
    *,
    target: Target = "cpu",
    rebuild: str | None = None,
) -> ExportReport:
    """Export the checkpoint to `out`, verified; raises as `export_onnx` and `load_model`."""
    from tfanet.checkpoint import load_model
    from tfanet_export.precision import Precision

    return export_onnx(
        load_model(checkpoint, image_size=settings.image_size),
        out,
        fp16=settings.fp16,
        target=target,
        pairs=settings.pairs,
        rebuild=rebuild,
        precision_file=Precision.read(settings.precision) if settings.precision else None,
        check_half=settings.check_half,
    )


def plan_settings(
    given: Mapping[str, Any], fp16: bool | None, recipe: str | None, backend: Backend
) -> tuple[BuildOptions, bool]:
    """Build options and fp16: those `given` (None counts as not given), else the recipe's, else the defaults.

    Raises `UserError` for options that are unknown, malformed or not supported by `backend`, and for a GPU
    that `backend` cannot build for here.
    """
    from tfanet_engines.build import capabilities_for
    from tfanet_engines.options import BuildOptions, read_recipe

    values = read_recipe(recipe, backend) if recipe else {}
    half = values.pop("fp16", False)
    BuildOptions.of(values, backend, f"recipe {recipe}")  # an error here names the recipe
    options = BuildOptions.of(values | {k: v for k, v in given.items() if v is not None}, backend)
    capabilities_for(backend, options)
    return options, half if fp16 is None else fp16


def build_from_checkpoint(
    checkpoint: Path,
    out: Path,
    options: BuildOptions,
    settings: ExportSettings = ExportSettings(),
    *,
    backend: Backend,
    rebuild: str | None = None,
    on_export: Callable[[ExportReport], None] = lambda report: None,
) -> BuildReport:
    """Export the checkpoint to `out`.onnx and build the plan `out`; `on_export` is called between the two."""
    from tfanet_engines import build_plan

    network = network_path(out)
    on_export(checkpoint_to_onnx(checkpoint, network, settings, target="gpu", rebuild=rebuild))
    return build_plan(network, out, options, backend=backend, rebuild=rebuild, progress=True)


def build_from_onnx(
    onnx_file: Path,
    out: Path,
    options: BuildOptions,
    *,
    backend: Backend,
    fp16: bool = False,
    rebuild: str | None = None,
) -> BuildReport:
    """Write `onnx_file` with the GPU function bodies to `out`.onnx and build the plan `out`.

    Raises `UserError` when `fp16` is asked for and the file is not FP16.
    """
    from tfanet_engines import build_plan
    from tfanet_engines.onnx_file import read_onnx

    precision = read_onnx(onnx_file).precision
    if fp16 and precision != "fp16":
        raise UserError(
            f"{onnx_file} is {precision}: precision is a property of the graph; export it with --fp16"
        )
    network = retarget(onnx_file, network_path(out), "gpu", rebuild=rebuild)
    return build_plan(network, out, options, backend=backend, rebuild=rebuild, progress=True)


def network_path(plan: Path) -> Path:
    """The ONNX file that a plan is built from."""
    return plan.with_name(plan.name + ".onnx")
