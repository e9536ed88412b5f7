"""`python -m tfanet_eval.demo`: a checkpoint, its ONNX files and its plan; what each scores, in one table.

Everything is made and measured here: the FP32 and FP16 ONNX files, the FP16 plan for an RTX 4090 (built
without one; measured only where there is one), and the control with shuffled sentences.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfanet.console import new_app, run, say
from tfanet_engines.targets import sm

if TYPE_CHECKING:
    from tfanet_engines.build import BuildReport

app = new_app("Export, build and evaluate one checkpoint in every format, in one table.")

SPLITS = ("val", "testA", "testB")
GPU = "rtx4090"
COLUMNS = (
    "engine", "mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9", "max logit error", "mask agreement", "ms per image",
    "speedup", "MB",
)  # fmt: skip


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
    from tfanet.files import require_writable, write_json, write_text

    for name in ("table.json", "table.md", "predictions.png"):
        require_writable(out / name)

    from tfanet.data.shapes import ensure_shapes
    from tfanet.weights import bundled
    from tfanet_eval import tables
    from tfanet_eval.benchmark import NOT_RUN, OK, benchmark, failures, onnx_pair, require, shuffled_miou
    from tfanet_eval.prediction import write_sheet
    from tfanet_eval.runs import Request

    checkpoint, root = checkpoint or bundled("tiny"), data or ensure_shapes()
    reference = Request(checkpoint, None, root, "refcoco", SPLITS, limit=limit)
    reference.datasets()
    single, half = onnx_pair(checkpoint, out / "model")
    plan = _built(half, out / "model-fp16.plan")
    rows = benchmark([reference, *(reference.of(file) for file in (single, half, plan))])
    shuffled = shuffled_miou(reference)

    shown = [row.to_dict() for row in rows]
    for row in shown:
        row["engine"] += "" if row["status"] == OK else f" ({row['status'].removeprefix(NOT_RUN)})"
    count = rows[0].figures["count"]
    title = f"{checkpoint.name} on {count} expressions of {root} ({', '.join(SPLITS)}); shares in percent"
    tables.show(shown, COLUMNS, title)
    reads = f"control: PyTorch with sentences shuffled among pictures has mIoU {100 * shuffled:.2f}"
    say(reads)
    summary = {"title": title, "rows": tables.chosen(shown, COLUMNS), "control_shuffled_miou": shuffled}
    write_json(out / "table.json", summary)
    write_text(out / "table.md", f"{tables.markdown(shown, COLUMNS)}\n{title}.\n{reads}.\n")
    write_sheet(reference.of(single), out / "predictions.png", f"TFANet in ONNX Runtime, {SPLITS[0]}")
    say(f"wrote {out / 'table.json'}, {out / 'table.md'} and {out / 'predictions.png'}")
    require(failures(rows, strangers=True))
    say("parity with PyTorch: every model that ran here is within its bounds")
    say(f'next: tfanet-predict IMAGE "TEXT" --engine {single}')


def _built(onnx: Path, plan: Path) -> Path:
    from tfanet_engines import BuildOptions, build_plan
    from tfanet_export.export import retarget

    for_gpu = retarget(onnx, onnx.with_name(f"{onnx.stem}-gpu.onnx"), "gpu")
    again = f"tfanet-export trt --onnx {onnx} --out {plan} --target {GPU}"
    report = build_plan(for_gpu, plan, BuildOptions(target=GPU), rebuild=again, progress=True)
    _print_proof(report)
    return report.plan


def _print_proof(report: BuildReport) -> None:
    proof = report.proof
    say(
        f"plan by {report.backend} {report.builder_version} for {sm(report.compute_capabilities[0])}: "
        f"{proof.half_weights} of {proof.half_weights + proof.float_weights} weights are half precision "
        f"({100 * proof.half_weight_share:.1f} %), and so are the outputs of "
        f"{100 * proof.half_layer_share:.1f} % of the layers"
    )


if __name__ == "__main__":
    run(app)
