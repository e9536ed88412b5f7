"""`python -m tfanet_eval.demo`: export, build and evaluate one checkpoint in every format, in one table.

Makes the FP32 and FP16 ONNX files and the FP16 plan for an RTX 4090 (built without the GPU; measured only on
one), measures them, and measures the control with shuffled expressions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfanet.console import new_app, run, say
from tfanet_engines.targets import sm
from tfanet_eval.cli.options import Data

if TYPE_CHECKING:
    from tfanet_engines.build import BuildReport
    from tfanet_eval.benchmark import Row

app = new_app("Export, build and evaluate one checkpoint in every format, in one table.")

SPLITS = ("val", "testA", "testB")
GPU = "rtx4090"
COLUMNS = (
    "engine", "mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9", "max logit error", "mask agreement", "ms per image",
    "speedup", "MB",
)  # fmt: skip


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for models, table and image.")] = Path("demo"),
    checkpoint: Annotated[Path | None, typer.Option(help="A .safetensors file [the bundled tiny].")] = None,
    data: Data = None,
    limit: Annotated[int, typer.Option(min=1, help="Expressions per split.")] = 100,
) -> None:
    """Exit 1, after the table, if a model is not within its parity bounds."""
    from tfanet.data.shapes import ensure_shapes
    from tfanet.files import require_writable
    from tfanet.weights import bundled

    for name in ("table.json", "table.md", "predictions.png"):
        require_writable(out / name)
    run_demo(out, checkpoint or bundled("tiny"), data or ensure_shapes(), limit)


def run_demo(out: Path, checkpoint: Path, data: Path, limit: int) -> None:
    """Make and measure the models; raises `VerificationError`, after the table, beyond a parity bound."""
    from tfanet_eval.benchmark import benchmark, failures, onnx_pair, require_none, shuffled_miou
    from tfanet_eval.jobs import EvaluationJob
    from tfanet_eval.prediction import write_sheet

    reference = EvaluationJob(checkpoint, None, data, "refcoco", SPLITS, limit=limit)
    reference.datasets()  # errors in the data appear before the export
    fp32, fp16 = onnx_pair(checkpoint, out / "model")
    plan = _build(fp16, out / "model-fp16.plan")
    rows = benchmark([reference, *(reference.for_engine(file) for file in (fp32, fp16, plan))])
    count = rows[0].values["count"]
    title = f"{checkpoint.name} on {count} expressions of {data} ({', '.join(SPLITS)}); shares in percent"
    _write_table(out, rows, title, shuffled_miou(reference))
    sheet = out / "predictions.png"
    write_sheet(reference.for_engine(fp32), sheet, f"TFANet in ONNX Runtime, {SPLITS[0]}")
    say(f"wrote {out / 'table.json'}, {out / 'table.md'} and {sheet}")
    require_none(failures(rows, allow_other_gpus=True))
    say("parity with PyTorch: every model that ran here is within its bounds")
    say(f'next: tfanet-predict IMAGE "TEXT" --engine {fp32}')


def _write_table(out: Path, rows: list[Row], title: str, control: float) -> None:
    """Print the table and write it as table.json and table.md; `control` is the mIoU of the control, 0..1."""
    from tfanet.files import write_json, write_text
    from tfanet_eval import tables
    from tfanet_eval.benchmark import NOT_RUN, OK

    columns = [row.to_dict() for row in rows]
    for row in columns:
        row["engine"] += "" if row["status"] == OK else f" ({row['status'].removeprefix(NOT_RUN)})"
    tables.show(columns, COLUMNS, title)
    line = f"control: PyTorch with expressions shuffled among images has mIoU {100 * control:.2f}"
    say(line)
    summary = {"title": title, "rows": tables.select(columns, COLUMNS), "control_shuffled_miou": control}
    write_json(out / "table.json", summary)
    write_text(out / "table.md", f"{tables.markdown(columns, COLUMNS)}\n{title}.\n{line}.\n")


def _build(onnx: Path, plan: Path) -> Path:
    from tfanet_engines import BuildOptions, build_plan
    from tfanet_export.export import retarget

    for_gpu = retarget(onnx, onnx.with_name(f"{onnx.stem}-gpu.onnx"), "gpu")
    rebuild = f"tfanet-export trt --onnx {onnx} --out {plan} --target {GPU}"
    report = build_plan(for_gpu, plan, BuildOptions(target=GPU), rebuild=rebuild, progress=True)
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
