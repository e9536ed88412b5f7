"""`python -m tfanet_eval.demo`: a checkpoint, its ONNX files and its plan; what each scores, in one table.

Everything is made and measured here: the FP32 and FP16 ONNX files, the FP16 plan for an RTX 4090 (built
without one; measured only where there is one), and the control with shuffled sentences.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfanet.console import new_app, run, say
from tfanet_engines.targets import capability_here, sm

if TYPE_CHECKING:
    from tfanet.data.refer import ReferDataset
    from tfanet_engines.build import BuildReport
    from tfanet_engines.engine import Engine
    from tfanet_eval.accuracy import Evaluation

app = new_app("Export, build and evaluate one checkpoint in every format, in one table.")

SPLITS = ("val", "testA", "testB")
GPU = "rtx4090"
ACCURACY = ("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9")
COLUMNS = ("engine", *ACCURACY, "max logit error", "mask agreement", "ms per image", "MB")


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    name: str
    file: Path
    precision: str
    """The key of its parity bounds; empty for the reference itself."""
    runs_here: bool = True


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for models, table and picture.")] = Path("demo"),
    checkpoint: Annotated[Path | None, typer.Option(help="A .safetensors file [the bundled tiny].")] = None,
    data: Annotated[
        Path | None, typer.Option(help="REFER folder; the synthetic one is made if absent.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Expressions a split.")] = 100,
) -> None:
    """Exit 1, after the table, when a model is not within its parity bounds."""
    from tfanet.files import require_writable, write_json

    for name in ("table.json", "table.md", "predictions.png"):
        require_writable(out / name)

    from tfanet.data.refer import ReferDataset
    from tfanet.data.shapes import ensure_shapes
    from tfanet.weights import bundled
    from tfanet_eval import tables
    from tfanet_eval.references import gate_of

    checkpoint = checkpoint or bundled("tiny")
    root = data or ensure_shapes()
    datasets = [ReferDataset(root, "refcoco", split) for split in SPLITS]
    contenders = _make(checkpoint, out)
    found = _evaluate_all(contenders, datasets, limit)
    control = _control(checkpoint, datasets, limit)

    rows = [_row(contender, found.get(contender.name)) for contender in contenders]
    count = len(found[contenders[0].name].metrics)
    title = f"{checkpoint.name} on {count} expressions of {root} ({', '.join(SPLITS)}); shares in percent"
    tables.show(rows, COLUMNS, title)
    shuffled = control.metrics.result()["mIoU"]
    reads = f"control: PyTorch with sentences shuffled among pictures has mIoU {100 * shuffled:.2f}"
    say(reads)
    summary = {"title": title, "rows": tables.chosen(rows, COLUMNS), "control_shuffled_miou": shuffled}
    write_json(out / "table.json", summary)
    _write_text(out / "table.md", f"{tables.markdown(rows, COLUMNS)}\n{title}.\n{reads}.\n")
    _write_pictures(contenders[1].file, datasets[0], out / "predictions.png")
    say(f"wrote {out / 'table.json'}, {out / 'table.md'} and {out / 'predictions.png'}")

    for contender in contenders[1:]:
        if contender.runs_here:
            gate_of(found[contender.name], contender.precision).require(contender.name)
    say("parity with PyTorch: every model that ran here is within its bounds")
    say(f'next: tfanet-predict IMAGE "TEXT" --engine {contenders[1].file}')


def _make(checkpoint: Path, out: Path) -> list[Contender]:
    """Export and build; the reference first, the FP32 ONNX file second."""
    from tfanet.checkpoint import load_model
    from tfanet_engines import BuildOptions, build_plan
    from tfanet_export import export_onnx
    from tfanet_export.export import retarget

    model = load_model(checkpoint)
    onnx, onnx_fp16 = out / "model.onnx", out / "model-fp16.onnx"
    again = f"tfanet-export onnx --checkpoint {checkpoint} --out"
    export_onnx(model, onnx, rebuild=f"{again} {onnx}")
    export_onnx(model, onnx_fp16, fp16=True, rebuild=f"{again} {onnx_fp16} --fp16")
    for_gpu, plan = retarget(onnx_fp16, out / "model-fp16-gpu.onnx", "gpu"), out / "model-fp16.plan"
    again = f"tfanet-export trt --onnx {onnx_fp16} --out {plan} --target {GPU}"
    report = build_plan(for_gpu, plan, BuildOptions(target=GPU), rebuild=again, progress=True)
    _print_proof(report)
    (capability,) = report.compute_capabilities
    runs_here = _has_gpu(capability)
    where = "" if runs_here else f" (built for {sm(capability)}; runs on that GPU)"
    return [
        Contender("PyTorch FP32", checkpoint, ""),
        Contender("ONNX FP32", onnx, "fp32"),
        Contender("ONNX FP16", onnx_fp16, "fp16"),
        Contender(f"TensorRT plan FP16{where}", report.plan, "fp16", runs_here),
    ]


def _print_proof(report: BuildReport) -> None:
    proof = report.proof
    say(
        f"plan by {report.backend} {report.builder_version} for {sm(report.compute_capabilities[0])}: "
        f"{proof.half_weights} of {proof.half_weights + proof.float_weights} weights are half precision "
        f"({100 * proof.half_weight_share:.1f} %), and so are the outputs of "
        f"{100 * proof.half_layer_share:.1f} % of the layers"
    )


def _has_gpu(capability: str) -> bool:
    import torch

    if not torch.cuda.is_available():
        return False
    return capability_here() == capability


def _evaluate_all(
    contenders: list[Contender], datasets: list[ReferDataset], limit: int
) -> dict[str, Evaluation]:
    """The evaluation, over all splits, of each contender that runs here, by name."""
    from tfanet_engines import open_engine

    found = {}
    with open_engine(contenders[0].file) as reference:
        found[contenders[0].name] = _over_splits(reference, datasets, limit, contenders[0].name)
        for contender in contenders[1:]:
            if contender.runs_here:
                with open_engine(contender.file) as engine:
                    found[contender.name] = _over_splits(engine, datasets, limit, contender.name, reference)
    return found


def _control(checkpoint: Path, datasets: list[ReferDataset], limit: int) -> Evaluation:
    from tfanet_engines import open_engine

    with open_engine(checkpoint) as engine:
        return _over_splits(engine, datasets, limit, "sentences shuffled", shuffle_sentences=True)


def _over_splits(
    engine: Engine,
    datasets: list[ReferDataset],
    limit: int,
    name: str,
    reference: Engine | None = None,
    **options: Any,
) -> Evaluation:
    from tfanet_eval.accuracy import evaluate

    parts = [
        evaluate(
            engine, pairs, reference=reference, limit=limit, progress=f"{name}, {pairs.split}", **options
        )
        for pairs in datasets
    ]
    return functools.reduce(operator.add, parts)


def _row(contender: Contender, evaluation: Evaluation | None) -> dict[str, Any]:
    from tfanet_eval import tables

    measured = {} if evaluation is None else tables.figures(evaluation)
    return {"engine": contender.name, "MB": contender.file.stat().st_size} | measured


def _write_text(path: Path, text: str) -> None:
    from tfanet.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_pictures(onnx: Path, dataset: ReferDataset, path: Path) -> None:
    from tfanet.pictures import contact_sheet, save_picture
    from tfanet_engines import open_engine
    from tfanet_eval.prediction import prediction_cells

    with open_engine(onnx) as engine:
        cells = prediction_cells(engine, dataset, 12)
    save_picture(contact_sheet(cells, title=f"TFANet in ONNX Runtime, {dataset.split}"), path)


if __name__ == "__main__":
    run(app)
