"""`tfanet-eval`: without arguments, the bundled `tiny` checkpoint on the synthetic data."""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfanet.console import new_app, run, say, working
from tfanet_eval.cli.compare import compare_files
from tfanet_eval.cli.drift import drift
from tfanet_eval.cli.report import report, require_page

if TYPE_CHECKING:
    from tfanet_eval.evaluation import Evaluation
    from tfanet_eval.metrics import Interval
    from tfanet_eval.runs import Request

app = new_app("Evaluate a .safetensors, .onnx or .plan on a referring segmentation data set.")
app.command()(drift)

_COLUMNS = ("split", "mIoU", "oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "count")
_TIMES = ("ms per image", "p95 ms")
_PARITY = ("Δ mIoU", "max logit error", "mask agreement")


@app.callback(invoke_without_command=True)
def evaluate_engine(
    context: typer.Context,
    engine: Annotated[
        Path | None, typer.Option(help="What to evaluate [the bundled tiny checkpoint].")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to compare with [the bundled one, if the engine was made of it]."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="REFER folder; the synthetic one is made if absent.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog.")] = "refcoco",
    split_by: Annotated[
        str | None, typer.Option(help="Refs file: unc, umd or google [unc; umd for refcocog].")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="val, testA, testB or test; may be repeated [val].")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Run a .safetensors at this size, a multiple of 32 [its own].")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N expressions of a split.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a call; times are those of such calls.")] = 1,
    shuffle_sentences: Annotated[
        bool,
        typer.Option("--shuffle-sentences", help="Control: every picture gets another picture's sentence."),
    ] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Open a plan that was built elsewhere.")] = False,
    convention: Annotated[
        str,
        typer.Option(help="original, 480 (as LAVT), remamber, cris or cris-first: how masks are counted."),
    ] = "original",
    results: Annotated[
        Path | None, typer.Option(help="Write every expression's figures here, as JSON lines.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted --results file.")] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that divide the expressions, and the cores, among them.")
    ] = 1,
    breakdown: Annotated[
        bool,
        typer.Option("--breakdown", help="Figures by sentence, object, rivals, position words, level."),
    ] = False,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit 1, with pictures of the worst pairs, beyond a parity bound.")
    ] = False,
    gate_pictures: Annotated[Path, typer.Option(help="Folder for the gate's pictures.")] = Path("gate"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a picture of sampled predictions here.")] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write a page of figures, charts and predictions here.")
    ] = None,
) -> None:
    """Report mIoU, oIoU, P@X and time, and check the engine against its PyTorch reference."""
    if context.invoked_subcommand is not None:
        return
    from tfanet.errors import UserError
    from tfanet.files import require_writable, write_json
    from tfanet.visualize import require_image_path
    from tfanet_eval import parallel

    rank = parallel.rank()
    if rank:
        return parallel.follow()
    if rank is not None and workers > 1:
        raise UserError("torchrun has started processes that divide the expressions; leave --workers out")
    if json_file is not None:
        require_writable(json_file)
    if sheet is not None:
        require_image_path(sheet)
    if report_file is not None:
        require_page(report_file)
    if resume and results is None:
        raise UserError("--resume continues a results file; name it with --results FILE.jsonl")
    if gate and shuffle_sentences:
        raise UserError("--gate judges an engine on its own sentences; leave --shuffle-sentences out")

    from tfanet.data.shapes import ensure_shapes
    from tfanet.files import require_file
    from tfanet.weights import bundled
    from tfanet_eval.metrics import convention_named
    from tfanet_eval.reference import find_reference, gate_of, precision_of
    from tfanet_eval.runs import Request, run_splits

    convention_named(convention)
    engine = require_file(engine or bundled("tiny"), "engine")
    against, why_none = find_reference(engine, reference)
    if gate and against is None:
        raise UserError(f"--gate has nothing to compare with: {why_none}")
    request = Request(
        engine, against, data or ensure_shapes(), dataset, tuple(dict.fromkeys(split or ["val"])), image_size,
        limit, batch, shuffle_sentences, convention, trust, split_by,
    )  # fmt: skip
    if rank is not None:
        found = parallel.run_in_ranks(request, results=results, resume=resume)
    elif workers > 1:
        found = parallel.run_in_workers(request, workers, results=results, resume=resume)
    else:
        found = run_splits(request, results=results, resume=resume)
    _print(found, _title(request, found), with_parity=against is not None)
    intervals = _intervals(found)
    _print_intervals(intervals)
    if breakdown:
        _print_breakdown(found)
    say(functools.reduce(operator.add, (evaluation.cost for evaluation in found.values())).line())
    if results is not None:
        say(f"wrote {results}")
    if sheet is not None:
        from tfanet_eval.prediction import write_sheet

        write_sheet(request, sheet, f"{request.engine.name} · {request.data_name} {request.splits[0]}")
        say(f"wrote {sheet}")
    if report_file is not None:
        _write_report(request, found, report_file)
    if json_file is not None:
        write_json(json_file, _summary(request, found, intervals))
        say(f"wrote {json_file}")
    if against is None:
        say(f"no parity figures: {why_none}")
    else:
        precision = precision_of(engine)
        gates = {name: gate_of(evaluation, precision) for name, evaluation in found.items()}
        if gate:
            from tfanet_eval.gate import show_verdicts

            show_verdicts(request, found, gates, gate_pictures)
        for name, verdict in gates.items():
            verdict.require(f"{engine} on {name}")
        say(f"parity with {against}: within the {precision} bounds")
    say(f'next: tfanet-predict IMAGE "TEXT" --engine {engine}')


def _title(request: Request, found: dict[str, Evaluation]) -> str:
    sizes = {"480": "masks at 480 x 480", "original": "masks at the pictures' own size"}
    notes = [sizes.get(request.convention, f"counted as {request.convention} does") + ", in percent"]
    notes += [f"calls of {request.batch} images"] if request.batch > 1 else []
    processes = _processes(found)
    notes += [f"times with {processes} processes at once"] if processes > 1 else []
    notes += ["sentences SHUFFLED among pictures"] if request.shuffled else []
    return f"{request.engine.name} on {request.data_name}: {', '.join(notes)}"


def _processes(found: dict[str, Evaluation]) -> int:
    return max(evaluation.cost.processes for evaluation in found.values())


def _print(found: dict[str, Evaluation], title: str, *, with_parity: bool) -> None:
    from tfanet_eval import tables

    rows = [{"split": name} | tables.figures(evaluation) for name, evaluation in found.items()]
    tables.show(rows, (*_COLUMNS, *_TIMES, *(_PARITY if with_parity else ())), title)


def _intervals(found: dict[str, Evaluation]) -> dict[str, dict[str, Interval]]:
    """The 95 % interval of every figure, by split."""
    from tfanet_eval.metrics import resample

    drawn = {name: resample(evaluation.records, evaluation.convention) for name, evaluation in found.items()}
    return {name: {figure: one.interval(figure) for figure in one.values} for name, one in drawn.items()}


def _print_intervals(intervals: dict[str, dict[str, Interval]]) -> None:
    for name, bounds in intervals.items():
        shown = (
            f"{figure} {100 * bounds[figure][0]:.2f} .. {100 * bounds[figure][1]:.2f}"
            for figure in ("mIoU", "oIoU")
        )
        say(f"{name}, 95 % intervals over pictures: {', '.join(shown)}")


def _print_breakdown(found: dict[str, Evaluation]) -> None:
    from tfanet_eval import tables
    from tfanet_eval.breakdown import breakdown

    for name, evaluation in found.items():
        rows = breakdown(evaluation.records, evaluation.convention)
        for row in rows:
            row["mIoU 95 %"] = " .. ".join(f"{100 * bound:.2f}" for bound in row["interval"])
        columns = ("group", "mIoU", "mIoU 95 %", "oIoU", "P@0.5", "P@0.7", "P@0.9", "count")
        tables.show(rows, columns, f"parts of {name}")


def _write_report(request: Request, found: dict[str, Evaluation], page: Path) -> None:
    from tfanet_eval.report.entries import results_of
    from tfanet_eval.report.page import write_report

    with working(f"drawing {page.name}"):
        results = results_of(request, found)
        engines = {one.run["engine_sha256"]: one.path for one in results}
        write_report(page, results, engines, trust=request.trust)
    say(f"wrote {page}")


def _summary(
    request: Request, found: dict[str, Evaluation], intervals: dict[str, dict[str, Interval]]
) -> dict[str, object]:
    return {
        "engine": str(request.engine),
        "reference": str(request.reference) if request.reference else None,
        "dataset": request.dataset,
        "split_by": request.chosen_split_by,
        "convention": request.convention,
        "shuffled_sentences": request.shuffled,
        "processes": _processes(found),
        "splits": {
            name: evaluation.to_dict() | {"intervals": intervals[name]} for name, evaluation in found.items()
        },
    }


app.command("compare")(compare_files)
app.command("report")(report)


def main() -> None:
    run(app)
