"""The steps of `tfanet-export onnx` and `trt` before `tfanet_engines.build_plan`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet.errors import UserError

if TYPE_CHECKING:
    from tfanet_engines import BuildOptions
    from tfanet_engines.trt_api import Backend
    from tfanet_export.export import ExportReport


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    image_size: int | None = None,
    precision: Path | None = None,
    **options: Any,
) -> ExportReport:
    """Export a checkpoint file with `export_onnx` and its `options`; raises as that and `load_model`.

    `image_size` is by default the checkpoint's. `precision` is a precision file.
    """
    from tfanet.checkpoint import load_model
    from tfanet_export.export import export_onnx
    from tfanet_export.precision import Precision

    model = load_model(checkpoint, image_size=image_size)
    return export_onnx(model, out, precision_file=Precision.read(precision) if precision else None, **options)


def retarget_for_plan(onnx_file: Path, out: Path, *, fp16: bool, rebuild: str) -> None:
    """Write `onnx_file` to `out` with the GPU function bodies.

    Raises `UserError` when `fp16` is requested and the file is not FP16.
    """
    from tfanet_engines.onnx_file import read_onnx

    precision = read_onnx(onnx_file).precision
    if fp16 and precision != "fp16":
        raise UserError(
            f"{onnx_file} is {precision}: precision is a property of the graph; export it with --fp16"
        )
    from tfanet_export.export import retarget

    retarget(onnx_file, out, "gpu", rebuild=rebuild)


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
