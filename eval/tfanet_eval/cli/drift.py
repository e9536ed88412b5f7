"""`tfanet-eval drift`: where FP16 error enters, and what to keep FP32."""

from __future__ import annotations

import itertools
import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfanet.console import say, working
from tfanet.errors import UserError, VerificationError

if TYPE_CHECKING:
    from tfanet.data.refer import ReferDataset
    from tfanet.model import TFANet
    from tfanet_eval.drift.measure import BlockDrift, Pair, Proposal


def drift(
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="A .safetensors file [the bundled tiny model].")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="The precision to look into; the only one.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="REFER folder; the synthetic one is made if absent.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog.")] = "refcoco",
    split_by: Annotated[
        str | None, typer.Option(help="Refs file: unc, umd or google [unc; umd for refcocog].")
    ] = None,
    split: Annotated[str, typer.Option(help="val, testA, testB or test.")] = "val",
    pairs: Annotated[int, typer.Option(min=1, help="Pairs to measure the blocks on.")] = 4,
    image_size: Annotated[int | None, typer.Option(help="A multiple of 32 [the checkpoint's].")] = None,
    precision: Annotated[
        Path | None, typer.Option("--precision", help="Measure with the blocks of this file in FP32.")
    ] = None,
    onnx: Annotated[bool, typer.Option(help="Also look into ONNX Runtime.")] = True,
    plan: Annotated[bool, typer.Option(help="Also look into a plan, where there is a GPU.")] = True,
    propose: Annotated[
        Path | None, typer.Option(help="Search for the blocks to keep FP32 and write them here (.json).")
    ] = None,
    budget: Annotated[float, typer.Option(min=0, help="With --propose: points of oIoU to lose.")] = 0.1,
    search_pairs: Annotated[int, typer.Option(min=1, help="With --propose: pairs to measure oIoU on.")] = 32,
    svg: Annotated[Path | None, typer.Option(help="Draw the drift here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
) -> None:
    """Show block by block where FP16 error enters; with --propose, find the blocks to keep FP32."""
    from tfanet.files import require_file, require_writable, write_json, write_text

    if not fp16:
        raise UserError("say which precision to look into: --fp16")
    for path in (propose, svg, json_file):
        if path is not None:
            require_writable(path)

    from tfanet.checkpoint import load_model
    from tfanet.data.refer import ReferDataset, data_name
    from tfanet.data.shapes import ensure_shapes
    from tfanet.weights import bundled
    from tfanet_eval.drift.chart import draw
    from tfanet_eval.drift.measure import by_error, measure
    from tfanet_eval.drift.plan import plan_with_blocks
    from tfanet_export.precision import Precision

    source = require_file(checkpoint, "checkpoint") if checkpoint else bundled("tiny")
    model = load_model(source, image_size=image_size)
    kept: tuple[str, ...] = ()
    if precision is not None:
        given = Precision.read(precision)
        given.require_fit(model)
        kept = given.keep_fp32
    wanted = max(pairs, search_pairs) if propose else pairs
    pictures = ReferDataset(ensure_shapes() if data is None else data, dataset, split, split_by)
    samples = _pairs(model, pictures, wanted)
    with ExitStack() as stack:
        stack.enter_context(working(f"{min(pairs, len(samples))} pairs, block by block"))
        look, why_none = stack.enter_context(plan_with_blocks(model, kept)) if plan else (None, "")
        found = measure(model, samples[:pairs], keep_fp32=kept, onnx=onnx, plan=look)
    _print(found, source.name)
    if why_none:
        say(f"no plan was looked into: {why_none}")
    if svg is not None:
        write_text(svg, draw(found, f"{source.name} in FP16, block by block"))
        say(f"wrote {svg}")
    if json_file is not None:
        write_json(
            json_file,
            {"model": str(source), "keep_fp32": list(kept), "blocks": [d.to_dict() for d in found]},
        )
        say(f"wrote {json_file}")
    if propose is not None:
        where = f"{data_name(dataset, pictures.split_by)} {split}"
        _propose(model, samples[:search_pairs], by_error(found), budget, propose, source, where)


def _propose(
    model: TFANet,
    samples: list[Pair],
    order: list[str],
    budget: float,
    out: Path,
    source: Path,
    where: str,
) -> None:
    from tfanet.checkpoint import weights_sha256
    from tfanet_eval.drift.measure import propose
    from tfanet_export.precision import Precision

    with working(f"searching on {len(samples)} pairs"):
        found = propose(model, samples, order, budget=budget)
    say(_summary(found, len(order), len(samples)))
    if not found.within:
        raise VerificationError(f"with every block FP32 the loss is still above {budget:g} points of oIoU")
    figures = {
        "data": where, "pairs": len(samples), "budget_points": budget, "oIoU_fp32": found.fp32,
        "oIoU_fp16": found.half, "oIoU_kept": found.repaired, "blocks": len(order), "sets_tried": found.tried,
    }  # fmt: skip
    Precision(weights_sha256(model), found.keep_fp32, figures).write(out)
    say(f"wrote {out}")
    say(f"next: tfanet-export onnx -c {source} --fp16 --precision {out}")


def _summary(found: Proposal, blocks: int, pairs: int) -> str:
    def points(value: float | None) -> str:
        return "NaN or infinite logits" if value is None else f"oIoU {100 * value:.2f}"

    names = ", ".join(found.keep_fp32) or "none"
    return (
        f"on {pairs} pairs FP32 {points(found.fp32)}, FP16 {points(found.half)}; "
        f"{len(found.keep_fp32)} of {blocks} blocks FP32 ({names}): {points(found.repaired)}; "
        f"{found.tried} sets tried"
    )


def _pairs(model: TFANet, source: ReferDataset, count: int) -> list[Pair]:
    from tfanet.data.images import resize_image
    from tfanet.data.transforms import tokenize
    from tfanet_eval.drift.measure import Pair

    # Spread over the split: neighbours are sentences about one picture.
    places = sorted({i * len(source) // count for i in range(min(count, len(source)))})
    chosen = [source[i] for i in places]
    tokens = tokenize([e.text for e in chosen], model.config.token_length)
    return [
        Pair(resize_image(source.image(e), model.config.image_size), row, source.mask(e))
        for e, row in zip(chosen, tokens, strict=True)
    ]


def _print(found: list[BlockDrift], name: str) -> None:
    from tfanet_eval.tables import show

    def percent(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{100 * value:.3f} %" if math.isfinite(value) else "overflow"

    rows = [
        {
            "block": d.name,
            "enters": percent(d.own.value),
            "gathered": percent(d.half.value),
            "ONNX Runtime": percent(d.onnx.value if d.onnx else None),
            **({"plan": percent(d.plan.value)} if d.plan else {}),
            "largest": f"{d.largest:.3g}",
        }
        for d in found
    ]
    show(rows, tuple(rows[0]), f"{name} in FP16: error relative to FP32, block by block")
    broken = [d.name for d in itertools.islice((d for d in found if not math.isfinite(d.own.value)), 3)]
    if broken:
        say(f"FP16 overflows in {', '.join(broken)}")
    worst = max(found, key=lambda d: d.own.value)
    say(f"the most error enters in {worst.name}: {percent(worst.own.value)}")
