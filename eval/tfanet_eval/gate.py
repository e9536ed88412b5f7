"""What the gate of `tfanet-eval --gate` says and shows of the pairs that are furthest from the reference."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tfanet.console import say

if TYPE_CHECKING:
    from tfanet_engines.parity import Gate
    from tfanet_eval.evaluation import Evaluation
    from tfanet_eval.results import Record
    from tfanet_eval.runs import Request


def show_verdicts(
    request: Request, found: Mapping[str, Evaluation], gates: Mapping[str, Gate], folder: Path
) -> None:
    """Print the verdict on each split; where one is closed, name its worst pairs and save them in `folder`.

    Each picture shows the engine's mask in blue and the reference's in yellow, with the IoU of the two.
    """
    for split, verdict in gates.items():
        figures = verdict.figures
        say(
            f"gate {verdict.precision} on {split}: {'CLOSED' if verdict.failures else 'open'}; "
            f"{figures.pairs} pairs, max logit error {figures.max_abs_error:.2e} "
            f"({figures.relative_error:.2e} deviations), mask agreement {figures.mask_agreement:.5f}, "
            + ", ".join(f"{name} {-drop:+.4f}" for name, drop in found[split].drops.items())
        )
        for failure in verdict.failures:
            say(f"  {failure}")
        if verdict.failures:
            _show(request, split, [found[split].records[place] for place in verdict.worst], folder)


def _show(request: Request, split: str, records: list[Record], folder: Path) -> None:
    from tfanet.iou import intersection_union
    from tfanet.visualize import Cell, contact_sheet, save_image
    from tfanet_engines import open_engine
    from tfanet_eval.metrics import convention_named
    from tfanet_eval.prediction import predict

    assert request.reference is not None
    rules, dataset = convention_named(request.convention), request.datasets()[split]
    samples = rules.samples(list(dataset))
    with ExitStack() as stack:
        engine = stack.enter_context(
            open_engine(request.engine, image_size=request.image_size, trust=request.trust)
        )
        size = engine.config.image_size
        reference = stack.enter_context(open_engine(request.reference, image_size=size))
        for place, record in enumerate(records, 1):
            assert record.against is not None
            picture = dataset.image(dataset[samples[record.index]])
            ours, theirs = (
                predict(model, picture, record.text, strict=False) > 0 for model in (engine, reference)
            )
            both, either = intersection_union(ours, theirs)
            cell = Cell(picture, record.text, ours, theirs, both / either if either else 1.0)
            file = folder / f"{split}-{place}-image-{record.image}-sentence-{record.sentence}.png"
            title = "blue: engine, yellow: reference"
            save_image(contact_sheet([cell], title=title, legend=False), file)
            say(
                f"  worst {place}: image {record.image}, sentence {record.sentence} {record.text!r}: max "
                f"logit error {record.against.parity.max_abs_error:.2e}, mask agreement "
                f"{record.against.parity.mask_agreement:.4f}; {file}"
            )
