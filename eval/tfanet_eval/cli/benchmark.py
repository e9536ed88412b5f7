"""`tfanet-benchmark`: compare every engine that this machine can run, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfanet.console import new_app, run
from tfanet_eval.cli.options import Batch, Data, Dataset, Json, Limit, SplitBy, Splits, Trust

app = new_app("Compare accuracy, parity, latency and memory of several engines in one table.")


@app.command()
def benchmark_engines(
    engines: Annotated[
        list[Path] | None,
        typer.Argument(
            help=".onnx, .plan and .safetensors files [tiny.onnx and tiny-fp16.onnx, exported if missing, "
            "and any tiny*.plan].",
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="The PyTorch checkpoint of the engines [the bundled tiny].")
    ] = None,
    data: Data = None,
    dataset: Dataset = "refcoco",
    split_by: SplitBy = None,
    split: Splits = None,
    limit: Limit = None,
    batch: Batch = 1,
    trust: Trust = False,
    floor: Annotated[
        list[str] | None,
        typer.Option(help="METRIC=NUMBER, such as oIoU=0.70: exit 1 if an engine is below it; repeatable."),
    ] = None,
    json_file: Json = None,
) -> None:
    """Exit 1, after the table, if an engine failed or is below a floor."""
    from tfanet.files import require_file, require_writable
    from tfanet_eval.benchmark import onnx_pair, parse_floors, run_benchmark

    floors = parse_floors(floor or [])
    if json_file is not None:
        require_writable(json_file)

    from tfanet.data.shapes import ensure_shapes
    from tfanet.weights import bundled
    from tfanet_eval.jobs import EvaluationJob

    checkpoint = require_file(reference or bundled("tiny"), "reference")
    if engines:
        files = [require_file(engine, "engine") for engine in engines]
    else:
        files = [*onnx_pair(bundled("tiny"), Path("tiny"), reuse=True), *sorted(Path().glob("tiny*.plan"))]
    root, splits = data or ensure_shapes(), tuple(dict.fromkeys(split or ["val"]))
    eager = EvaluationJob(
        checkpoint, None, root, dataset, splits, limit=limit, batch=batch, trust=trust, split_by=split_by
    )
    eager.datasets()  # errors in the data appear before any engine runs
    run_benchmark([eager, *map(eager.for_engine, files)], floors, json_file)


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
