"""`tfanet-eval drift`: measure FP16 drift block by block, print and draw it, propose FP32 blocks."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tfanet.checkpoint import load_model, weights_sha256
from tfanet.console import say, working
from tfanet.data.preprocess import resize_image, tokenize
from tfanet.data.refer import ReferDataset, data_name
from tfanet.errors import VerificationError
from tfanet.files import write_json, write_text
from tfanet.model import TFANet
from tfanet_eval.drift.chart import draw
from tfanet_eval.drift.measure import BlockDrift, Pair, by_error, measure
from tfanet_eval.drift.plan import plan_with_blocks
from tfanet_eval.drift.propose import Proposal, propose
from tfanet_eval.tables import show
from tfanet_export.precision import Precision


@dataclass(frozen=True)
class DriftRequest:
    """What to measure, and what to write."""

    checkpoint: Path
    data: Path
    dataset: str
    split: str
    split_by: str | None = None
    pairs: int = 4
    """Samples to measure the blocks on."""
    image_size: int | None = None
    precision: Path | None = None
    """A precision file; its blocks stay FP32."""
    onnx: bool = True
    plan: bool = True
    propose: Path | None = None
    """Where to write a precision file with the fewest FP32 blocks that keep `budget`; None: no search."""
    budget: float = 0.1
    """Points of oIoU that FP16 may lose."""
    search_pairs: int = 32
    """Samples to measure oIoU on during the search."""
    svg: Path | None = None
    json: Path | None = None


def run_drift(request: DriftRequest) -> list[BlockDrift]:
    """Measure the drift of every block, print it and write the request's files.

    Raises `VerificationError` if FP16 loses more than the budget even with every block in FP32.
    """
    model = load_model(request.checkpoint, image_size=request.image_size)
    keep_fp32: tuple[str, ...] = ()
    if request.precision is not None:
        precision = Precision.read(request.precision)
        precision.require_fit(model)
        keep_fp32 = precision.keep_fp32
    dataset = ReferDataset(request.data, request.dataset, request.split, request.split_by)
    count = max(request.pairs, request.search_pairs) if request.propose else request.pairs
    pairs = load_pairs(model, dataset, count)
    drifts = _measure(model, pairs[: request.pairs], keep_fp32, request)
    if request.svg is not None:
        write_text(request.svg, draw(drifts, f"{request.checkpoint.name} in FP16, block by block"))
        say(f"wrote {request.svg}")
    if request.json is not None:
        blocks = [drift.to_dict() for drift in drifts]
        content = {"model": str(request.checkpoint), "keep_fp32": list(keep_fp32), "blocks": blocks}
        write_json(request.json, content)
        say(f"wrote {request.json}")
    if request.propose is not None:
        where = f"{data_name(request.dataset, dataset.split_by)} {request.split}"
        _propose(model, pairs[: request.search_pairs], by_error(drifts), request, request.propose, where)
    return drifts


def load_pairs(model: TFANet, dataset: ReferDataset, count: int) -> list[Pair]:
    """`count` samples, evenly spaced because neighbours in the data set share their image."""
    indices = sorted({i * len(dataset) // count for i in range(min(count, len(dataset)))})
    expressions = [dataset[i] for i in indices]
    tokens = tokenize([e.text for e in expressions], model.config.token_length)
    return [
        Pair(resize_image(dataset.image(e), model.config.image_size), row, dataset.mask(e))
        for e, row in zip(expressions, tokens, strict=True)
    ]


def _measure(
    model: TFANet, pairs: list[Pair], keep_fp32: tuple[str, ...], request: DriftRequest
) -> list[BlockDrift]:
    """Measure and print the drift of every block."""
    with ExitStack() as stack:
        stack.enter_context(working(f"{len(pairs)} pairs, block by block"))
        plan, why_no_plan = None, ""
        if request.plan:
            plan, why_no_plan = stack.enter_context(plan_with_blocks(model, keep_fp32))
        drifts = measure(model, pairs, keep_fp32=keep_fp32, onnx=request.onnx, plan=plan)
    _print(drifts, request.checkpoint.name)
    if why_no_plan:
        say(f"no plan was measured: {why_no_plan}")
    return drifts


def _print(drifts: list[BlockDrift], name: str) -> None:
    rows = [
        {
            "block": drift.name,
            "enters": _percent(drift.own.value),
            "accumulated": _percent(drift.half.value),
            "ONNX Runtime": _percent(drift.onnx.value if drift.onnx else None),
            **({"plan": _percent(drift.plan.value)} if drift.plan else {}),
            "largest": f"{drift.largest:.3g}",
        }
        for drift in drifts
    ]
    show(rows, tuple(rows[0]), f"{name} in FP16: error relative to FP32, block by block")
    overflowing = [drift.name for drift in drifts if not math.isfinite(drift.own.value)]
    if overflowing:
        say(f"FP16 overflows in {', '.join(overflowing[:3])}")
    worst = max(drifts, key=lambda drift: drift.own.value)
    say(f"the most error enters in {worst.name}: {_percent(worst.own.value)}")


def _percent(error: float | None) -> str:
    if error is None:
        return "-"
    return f"{100 * error:.3f} %" if math.isfinite(error) else "overflow"


def _propose(
    model: TFANet, pairs: list[Pair], order: list[str], request: DriftRequest, out: Path, where: str
) -> None:
    """Search for the blocks to keep FP32, and write the precision file."""
    with working(f"searching on {len(pairs)} pairs"):
        proposal = propose(model, pairs, order, budget=request.budget)
    say(_summary(proposal, len(order), len(pairs)))
    if not proposal.within:
        raise VerificationError(
            f"with every block FP32 the loss is still above {request.budget:g} points of oIoU"
        )
    figures = {
        "data": where, "pairs": len(pairs), "budget_points": request.budget, "oIoU_fp32": proposal.fp32,
        "oIoU_fp16": proposal.half, "oIoU_kept": proposal.repaired, "blocks": len(order),
        "sets_tried": proposal.tried,
    }  # fmt: skip
    Precision(weights_sha256(model), proposal.keep_fp32, figures).write(out)
    say(f"wrote {out}")
    say(f"next: tfanet-export onnx -c {request.checkpoint} --fp16 --precision {out}")


def _summary(proposal: Proposal, blocks: int, pairs: int) -> str:
    def points(value: float | None) -> str:
        return "NaN or infinite logits" if value is None else f"oIoU {100 * value:.2f}"

    names = ", ".join(proposal.keep_fp32) or "none"
    return (
        f"on {pairs} pairs FP32 {points(proposal.fp32)}, FP16 {points(proposal.half)}; "
        f"{len(proposal.keep_fp32)} of {blocks} blocks FP32 ({names}): {points(proposal.repaired)}; "
        f"{proposal.tried} sets tried"
    )
