"""`tfanet-benchmark`: every engine that this machine can run, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfanet.console import new_app, run, say

app = new_app("Accuracy, parity, time and memory of several engines in one table.")

_COLUMNS = (
    "engine", "status", "MB", "mIoU", "oIoU", "max logit error", "mask agreement", "ms per image", "p95 ms",
    "images/s", "speedup", "peak MB",
)  # fmt: skip


@app.command()
def compare_engines(
    engines: Annotated[
        list[Path] | None,
        typer.Argument(
            help=".onnx, .plan and .safetensors files [tiny.onnx, tiny-fp16.onnx, exported if absent, and "
            "tiny*.plan where there is one].",
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="The PyTorch checkpoint they were made of [the bundled tiny].")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="REFER folder; the synthetic one is made if absent.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog.")] = "refcoco",
    split_by: Annotated[
        str | None, typer.Option(help="Refs file: unc, umd or google [unc; umd for refcocog].")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="val, testA, testB; may be repeated [val].")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N expressions of a split.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a call; times are those of such calls.")] = 1,
    trust: Annotated[bool, typer.Option("--trust", help="Open a plan that was built elsewhere.")] = False,
    floor: Annotated[
        list[str] | None,
        typer.Option(help="FIGURE=NUMBER, as oIoU=0.70: exit 1 where an engine is below; may be repeated."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table here.")] = None,
) -> None:
    """Exit 1, after the table, when an engine failed or is below a floor."""
    from tfanet.files import require_file, require_writable, write_json
    from tfanet_eval import tables
    from tfanet_eval.benchmark import benchmark, broken_floors, failures, onnx_pair, parse_floors, require

    floors = parse_floors(floor or [])
    if json_file is not None:
        require_writable(json_file)

    from tfanet.data.shapes import ensure_shapes
    from tfanet.weights import bundled
    from tfanet_eval.runs import Request, environment

    checkpoint = require_file(reference or bundled("tiny"), "reference")
    if engines:
        files = [require_file(engine, "engine") for engine in engines]
    else:
        files = [*onnx_pair(bundled("tiny"), Path("tiny"), reuse=True), *sorted(Path().glob("tiny*.plan"))]
    root, splits = data or ensure_shapes(), tuple(dict.fromkeys(split or ["val"]))
    eager = Request(
        checkpoint, None, root, dataset, splits, limit=limit, batch=batch, trust=trust, split_by=split_by
    )
    eager.datasets()
    rows = benchmark([eager, *map(eager.of, files)])
    shown = [row.to_dict() for row in rows]
    title = (
        f"{eager.data_name} {', '.join(splits)}, calls of {batch}; shares in percent; "
        "the first row is PyTorch eager"
    )
    brief = [row | {"status": row["status"].partition(":")[0]} for row in shown]
    tables.show(brief, _COLUMNS, title)
    if json_file is not None:
        chosen = tables.chosen(shown, _COLUMNS)
        write_json(json_file, {"title": title, "rows": chosen, "environment": environment()})
        say(f"wrote {json_file}")
    wrong = failures(rows) + broken_floors(rows, floors)
    for sentence in wrong:
        say(sentence)
    require(wrong)


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
