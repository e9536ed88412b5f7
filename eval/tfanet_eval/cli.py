"""`tfanet-eval`: without arguments, the bundled `tiny` checkpoint on the synthetic data."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfanet.console import new_app, run, say

if TYPE_CHECKING:
    from tfanet.data.refer import ReferDataset
    from tfanet_engines.engine import Engine
    from tfanet_eval.accuracy import Evaluation

app = new_app("Evaluate a .safetensors, .onnx or .plan on a referring segmentation data set.")

_COLUMNS = ("split", "mIoU", "oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "count")
_TIMES = ("ms per image", "p95 ms")
_PARITY = ("Δ mIoU", "max logit error", "mask agreement")
_SHEET_CELLS = 12


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
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a picture of sampled predictions here.")] = None,
) -> None:
    """Report mIoU, oIoU, P@X and time, and check the engine against its PyTorch reference."""
    if context.invoked_subcommand is not None:
        return
    from tfanet.files import require_writable, write_json
    from tfanet.pictures import require_picture

    if json_file is not None:
        require_writable(json_file)
    if sheet is not None:
        require_picture(sheet)

    from tfanet.weights import bundled
    from tfanet_engines import open_engine
    from tfanet_eval.accuracy import evaluate
    from tfanet_eval.references import find_reference, precision_of, verify

    engine = engine or bundled("tiny")
    splits = list(dict.fromkeys(split or ["val"]))
    against, why_none = find_reference(engine, reference)
    with open_engine(engine, image_size=image_size, trust=trust) as opened:
        datasets = _datasets(data, dataset, splits)
        size = opened.config.image_size
        with open_engine(against, image_size=size) if against else nullcontext() as compared:
            found = {
                name: evaluate(
                    opened, pairs, reference=compared, limit=limit, batch=batch,
                    shuffle_sentences=shuffle_sentences, progress=f"{dataset} {name}",
                )
                for name, pairs in datasets.items()
            }  # fmt: skip
        _print(found, _title(engine, dataset, batch, shuffle_sentences), with_parity=against is not None)
        if sheet is not None:
            _write_sheet(opened, datasets[splits[0]], sheet, f"{engine.name} · {dataset} {splits[0]}")
    if json_file is not None:
        write_json(json_file, _summary(engine, against, dataset, shuffle_sentences, found))
        say(f"wrote {json_file}")
    if against is None:
        say(f"no parity figures: {why_none}")
    else:
        precision = precision_of(engine)
        for name, evaluation in found.items():
            verify(evaluation, precision, f"{engine} on {name}")
        say(f"parity with {against}: within the {precision} bounds")
    say(f'next: tfanet-predict IMAGE "TEXT" --engine {engine}')


def _datasets(data: Path | None, dataset: str, splits: list[str]) -> dict[str, ReferDataset]:
    from tfanet.data.refer import ReferDataset
    from tfanet.data.shapes import ensure_shapes

    root = ensure_shapes() if data is None else data
    return {name: ReferDataset(root, dataset, name) for name in splits}


def _title(engine: Path, dataset: str, batch: int, shuffled: bool) -> str:
    notes = ["masks at the pictures' own size, in percent"]
    notes += [f"calls of {batch} images"] if batch > 1 else []
    notes += ["sentences SHUFFLED among pictures"] if shuffled else []
    return f"{engine.name} on {dataset}: {', '.join(notes)}"


def _print(found: dict[str, Evaluation], title: str, *, with_parity: bool) -> None:
    from tfanet_eval import tables

    rows = [{"split": name} | tables.figures(evaluation) for name, evaluation in found.items()]
    tables.show(rows, (*_COLUMNS, *_TIMES, *(_PARITY if with_parity else ())), title)


def _write_sheet(engine: Engine, pairs: ReferDataset, sheet: Path, title: str) -> None:
    from tfanet.pictures import contact_sheet, save_picture
    from tfanet_eval.prediction import prediction_cells

    save_picture(contact_sheet(prediction_cells(engine, pairs, _SHEET_CELLS), title=title), sheet)
    say(f"wrote {sheet}")


def _summary(
    engine: Path, reference: Path | None, dataset: str, shuffled: bool, found: dict[str, Evaluation]
) -> dict[str, object]:
    from tfanet_eval.metrics import CONVENTION

    return {
        "engine": str(engine),
        "reference": str(reference) if reference else None,
        "dataset": dataset,
        "convention": CONVENTION,
        "shuffled_sentences": shuffled,
        "splits": {name: evaluation.to_dict() for name, evaluation in found.items()},
    }


def main() -> None:
    run(app)
