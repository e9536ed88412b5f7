"""`tfanet-eval drift`: in which blocks FP16 error enters, and which to keep FP32."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfanet.errors import UserError
from tfanet_eval.cli.options import Data, Dataset, Json, SplitBy


def drift(
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="A .safetensors file [the bundled tiny model].")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="The precision to measure; required.")] = False,
    data: Data = None,
    dataset: Dataset = "refcoco",
    split_by: SplitBy = None,
    split: Annotated[str, typer.Option(help="val, testA, testB or test.")] = "val",
    pairs: Annotated[int, typer.Option(min=1, help="Samples to measure the blocks on.")] = 4,
    image_size: Annotated[int | None, typer.Option(help="A multiple of 32 [the checkpoint's].")] = None,
    precision: Annotated[
        Path | None, typer.Option("--precision", help="Measure with the blocks of this file in FP32.")
    ] = None,
    onnx: Annotated[bool, typer.Option(help="Also measure ONNX Runtime.")] = True,
    plan: Annotated[bool, typer.Option(help="Also measure a TensorRT plan, if there is a GPU.")] = True,
    propose: Annotated[
        Path | None, typer.Option(help="Search for the blocks to keep FP32; write them here (.json).")
    ] = None,
    budget: Annotated[float, typer.Option(min=0, help="With --propose: points of oIoU to lose.")] = 0.1,
    search_pairs: Annotated[
        int, typer.Option(min=1, help="With --propose: samples to measure oIoU on.")
    ] = 32,
    svg: Annotated[Path | None, typer.Option(help="Draw the drift to this SVG file.")] = None,
    json_file: Json = None,
) -> None:
    """Measure block by block where FP16 error enters; with --propose, find the blocks to keep FP32."""
    from tfanet.files import require_file, require_writable

    if not fp16:
        raise UserError("name the precision to measure: --fp16")
    for path in (propose, svg, json_file):
        if path is not None:
            require_writable(path)

    from tfanet.data.shapes import ensure_shapes
    from tfanet.weights import bundled
    from tfanet_eval.drift.run import DriftRequest, run_drift

    source = require_file(checkpoint, "checkpoint") if checkpoint else bundled("tiny")
    root = ensure_shapes() if data is None else data
    run_drift(
        DriftRequest(
            source, root, dataset, split, split_by, pairs, image_size, precision, onnx, plan, propose,
            budget, search_pairs, svg, json_file,
        )
    )  # fmt: skip
