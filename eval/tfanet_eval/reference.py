"""The PyTorch reference of an engine: which checkpoint it is, and whether the engine matches it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tfanet.console import say
from tfanet.errors import UserError

if TYPE_CHECKING:
    from tfanet_engines.parity import Gate
    from tfanet_eval.evaluation import Evaluation
    from tfanet_eval.jobs import EvaluationJob
    from tfanet_eval.results import Record


def find_reference(engine: Path, requested: Path | None) -> tuple[Path | None, str]:
    """The checkpoint to compare `engine` with, or None and the reason why there is none.

    It is `requested` if given, otherwise the bundled checkpoint if the engine has its weights, according to
    its sidecar or the metadata of an ONNX file without one. Raises `UserError` if `requested` is not a
    .safetensors file or has other weights than the engine.
    """
    if requested is not None and requested.suffix != ".safetensors":
        raise UserError(f"--reference {requested} is not a PyTorch checkpoint; give a .safetensors file")
    if engine.suffix == ".safetensors":
        return requested, "the engine is a PyTorch checkpoint itself; --reference compares it with another"
    from tfanet.checkpoint import load_model, weights_sha256
    from tfanet.weights import bundled
    from tfanet_engines.weights import describe, require_weights

    if requested is not None:
        require_weights(engine, requested)
        return requested, ""
    try:
        if describe(engine).weights_sha256 == weights_sha256(load_model(bundled("tiny"))):
            return bundled("tiny"), ""
    except UserError as error:
        return None, str(error)
    return None, f"{engine.name} was not made from the bundled checkpoint; name its own with --reference"


def precision_of(engine: Path) -> str:
    """`fp32` or `fp16`, the key of the engine's bounds in `tfanet_engines.parity.TOLERANCES`."""
    if engine.suffix == ".safetensors":
        return "fp32"
    from tfanet_engines.weights import describe

    return describe(engine).precision


def gate_of(evaluation: Evaluation, precision: str) -> Gate:
    """The parity gate over the evaluation's pairs; `Gate.worst` are indices of its `records`."""
    from tfanet_engines import gate

    pairs = [record.reference.parity for record in evaluation.records if record.reference is not None]
    return gate(pairs, precision, evaluation.drops)


def report_gates(
    job: EvaluationJob, evaluations: Mapping[str, Evaluation], gates: Mapping[str, Gate], folder: Path
) -> None:
    """Print the gate of each split; for a closed one, its worst pairs, with images saved in `folder`."""
    for split, gate in gates.items():
        parity = gate.metrics
        say(
            f"gate {gate.precision} on {split}: {'CLOSED' if gate.failures else 'open'}; "
            f"{parity.pairs} pairs, max logit error {parity.max_abs_error:.2e} "
            f"({parity.relative_error:.2e} deviations), mask agreement {parity.mask_agreement:.5f}, "
            + ", ".join(f"{name} {-drop:+.4f}" for name, drop in evaluations[split].drops.items())
        )
        for failure in gate.failures:
            say(f"  {failure}")
        if gate.failures:
            _save_worst(job, split, [evaluations[split].records[index] for index in gate.worst], folder)


def _save_worst(job: EvaluationJob, split: str, records: list[Record], folder: Path) -> None:
    """Save each record's image with both masks, the engine's in blue, and print one line about it."""
    from tfanet.iou import intersection_union
    from tfanet.visualize import Cell, contact_sheet, save_image
    from tfanet_engines import open_engine
    from tfanet_eval.metrics import convention_named
    from tfanet_eval.prediction import predict

    assert job.reference is not None
    dataset = job.datasets()[split]
    samples = convention_named(job.convention).samples(list(dataset))
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(job.engine, image_size=job.image_size, trust=job.trust))
        size = engine.config.image_size
        reference = stack.enter_context(open_engine(job.reference, image_size=size))
        for number, record in enumerate(records, 1):
            assert record.reference is not None
            image = dataset.image(dataset[samples[record.index]])
            mask, expected = (
                predict(model, image, record.text, strict=False) > 0 for model in (engine, reference)
            )
            intersection, union = intersection_union(mask, expected)
            cell = Cell(image, record.text, mask, expected, intersection / union if union else 1.0)
            file = folder / f"{split}-{number}-image-{record.image}-sentence-{record.sentence}.png"
            title = "blue: engine, yellow: reference"
            save_image(contact_sheet([cell], title=title, legend=False), file)
            say(
                f"  worst {number}: image {record.image}, sentence {record.sentence} {record.text!r}: max "
                f"logit error {record.reference.parity.max_abs_error:.2e}, mask agreement "
                f"{record.reference.parity.mask_agreement:.4f}; {file}"
            )
