"""`tfanet-eval`: evaluate an engine; by default the bundled `tiny` checkpoint on the synthetic data."""

from __future__ import annotations

from pathlib import Path

import typer

from tfanet.console import deprecated_options, new_app, run
from tfanet.errors import UserError
from tfanet_eval.cli import options
from tfanet_eval.cli.compare import compare
from tfanet_eval.cli.drift import drift
from tfanet_eval.cli.report import report

app = new_app("Evaluate a .safetensors, .onnx or .plan on a referring segmentation data set.")
app.command()(drift)
app.command()(compare)
app.command()(report)


_FORMER = {"--shuffle-sentences": "--shuffle-expressions", "--gate-pictures": "--gate-images"}


@app.callback(invoke_without_command=True, cls=deprecated_options(_FORMER, group=True))
def evaluate_engine(
    context: typer.Context,
    engine: options.Engine = None,
    reference: options.Reference = None,
    data: options.Data = None,
    dataset: options.Dataset = "refcoco",
    split_by: options.SplitBy = None,
    split: options.Splits = None,
    image_size: options.ImageSize = None,
    limit: options.Limit = None,
    batch: options.Batch = 1,
    shuffle_expressions: options.ShuffleExpressions = False,
    trust: options.Trust = False,
    convention: options.ConventionName = "original",
    results: options.Results = None,
    resume: options.Resume = False,
    workers: options.Workers = 1,
    breakdown: options.Breakdown = False,
    gate: options.ParityGate = False,
    gate_images: options.GateImages = Path("gate"),
    json_file: options.Json = None,
    sheet: options.Sheet = None,
    report_file: options.Page = None,
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
