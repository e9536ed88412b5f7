"""`tfanet-eval`: evaluate an engine; by default the bundled `tiny` checkpoint on the synthetic data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfanet.console import deprecated_options, new_app, run
from tfanet.errors import UserError
from tfanet_eval.cli.compare import compare
from tfanet_eval.cli.drift import drift
from tfanet_eval.cli.options import Batch, Data, Dataset, Json, Limit, SplitBy, Splits, Trust
from tfanet_eval.cli.report import report

app = new_app("Evaluate a .safetensors, .onnx or .plan on a referring segmentation data set.")
app.command()(drift)
app.command()(compare)
app.command()(report)


_FORMER = {"--shuffle-sentences": "--shuffle-expressions", "--gate-pictures": "--gate-images"}


@app.callback(invoke_without_command=True, cls=deprecated_options(_FORMER, group=True))
def evaluate_engine(
    context: typer.Context,
    engine: Annotated[
        Path | None, typer.Option(help="Engine to evaluate [the bundled tiny checkpoint].")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to compare with [the bundled one, if the engine has its weights]."),
    ] = None,
    data: Data = None,
    dataset: Dataset = "refcoco",
    split_by: SplitBy = None,
    split: Splits = None,
    image_size: Annotated[
        int | None, typer.Option(help="Run a .safetensors at this size, a multiple of 32 [its own].")
    ] = None,
    limit: Limit = None,
    batch: Batch = 1,
    shuffle_expressions: Annotated[
        bool,
        typer.Option("--shuffle-expressions", help="Control: give every image an expression of another one."),
    ] = False,
    trust: Trust = False,
    convention: Annotated[
        str, typer.Option(help="How masks are compared: original, 480 (as LAVT), remamber, cris, cris-first.")
    ] = "original",
    results: Annotated[
        Path | None, typer.Option(help="Write a record for every expression here, as JSON Lines.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted --results file.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="CPU processes to divide the expressions among.")] = 1,
    breakdown: Annotated[
        bool,
        typer.Option(
            "--breakdown", help="Metrics by expression length, area, distractors, position words and level."
        ),
    ] = False,
    gate: Annotated[
        bool, typer.Option("--gate", help="Print the parity gate; save the worst pairs if a bound is broken.")
    ] = False,
    gate_images: Annotated[Path, typer.Option(help="Folder for the gate's images.")] = Path("gate"),
    json_file: Json = None,
    sheet: Annotated[Path | None, typer.Option(help="Write an image of sampled predictions here.")] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML page of metrics, plots and predictions.")
    ] = None,
) -> None:
    """Report mIoU, oIoU, P@X and latency, and check the engine against its PyTorch reference."""
    if context.invoked_subcommand is not None:
        return
    from tfanet_eval import parallel
    from tfanet_eval.output import Outputs, write_outputs

    if parallel.rank():
        return parallel.follow_rank_0()
    outputs = Outputs(results, breakdown, gate, gate_images, json_file, sheet, report_file)
    outputs.require_writable()
    _check_combination(resume, results, gate, shuffle_expressions, workers)

    from tfanet.data.shapes import ensure_shapes
    from tfanet.files import require_file
    from tfanet.weights import bundled
    from tfanet_eval.jobs import EvaluationJob
    from tfanet_eval.metrics import convention_named
    from tfanet_eval.reference import find_reference

    convention_named(convention)
    engine = require_file(engine or bundled("tiny"), "engine")
    reference, why_none = find_reference(engine, reference)
    if gate and reference is None:
        raise UserError(f"--gate has no reference to compare with: {why_none}")
    job = EvaluationJob(
        engine, reference, data or ensure_shapes(), dataset, tuple(dict.fromkeys(split or ["val"])),
        image_size, limit, batch, shuffle_expressions, convention, trust, split_by,
    )  # fmt: skip
    evaluations = parallel.run_divided(job, workers, results=results, resume=resume)
    write_outputs(job, evaluations, outputs, why_none)


def _check_combination(resume: bool, results: Path | None, gate: bool, shuffled: bool, workers: int) -> None:
    from tfanet_eval import parallel

    if parallel.rank() is not None and workers > 1:
        raise UserError("torchrun has started processes that divide the expressions; leave --workers out")
    if resume and results is None:
        raise UserError("--resume continues a results file; name it with --results FILE.jsonl")
    if gate and shuffled:
        raise UserError("--gate needs each image's own expressions; leave --shuffle-expressions out")


def main() -> None:
    run(app)
