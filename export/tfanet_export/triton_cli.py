"""`tfanet-export triton`: a model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfanet.console import say
from tfanet.signature import MAX_BATCH

if TYPE_CHECKING:
    from tfanet_export.triton_server.repository import Repository


def triton(
    out: Annotated[Path, typer.Argument(help="Folder of the model repository: new or empty.")],
    engine: Annotated[
        list[Path],
        typer.Option(help="An .onnx file, or a .plan of TensorRT; again for each other GPU's plan."),
    ],
    name: Annotated[str, typer.Option(help="What clients call the model.")] = "tfanet",
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=MAX_BATCH, help="Most pictures at once [a plan's largest; 8].")
    ] = None,
) -> None:
    """Write a model repository for Triton Inference Server: picture and sentence in, mask out."""
    from tfanet.console import working
    from tfanet_export.triton_server.repository import write_repository

    with working(f"writing {out}"):
        written = write_repository(out, engine, name=name, max_batch=max_batch)
    _report(written)


def _report(written: Repository) -> None:
    sidecar, plan = written.sidecar, written.backend == "tensorrt"
    say(
        f"{written.path}: clients call {written.client_model}; {written.core_model} computes, "
        f"{sidecar.precision}, backend {written.backend}, batches of up to {written.max_batch}"
    )
    say('the server\'s Python needs: pip install "numpy<2" pillow ftfy regex')
    if plan:
        say(f"the server's TensorRT must be {sidecar.builder_version}: another version refuses the plan")
    say(f"next: tritonserver --model-repository={written.path}")
