"""Which PyTorch checkpoint an engine is held against, and whether it is close enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tfanet.errors import UserError

if TYPE_CHECKING:
    from tfanet_engines.parity import Gate
    from tfanet_eval.evaluation import Evaluation


def find_reference(engine: Path, asked: Path | None) -> tuple[Path | None, str]:
    """The checkpoint to compare `engine` with; where there is none, None and the reason.

    `asked` is taken if given, otherwise the bundled checkpoint if the engine was made of it, as its sidecar
    (or an ONNX file without one) says. `UserError` when `asked` is no .safetensors file or holds other
    weights than those that the engine was made of.
    """
    if asked is not None and asked.suffix != ".safetensors":
        raise UserError(f"--reference {asked} is no PyTorch checkpoint; give a .safetensors file")
    if engine.suffix == ".safetensors":
        return asked, "the engine is a PyTorch checkpoint itself; --reference compares it with another"
    from tfanet.weights import bundled
    from tfanet_engines.weights import describe, require_weights

    if asked is not None:
        require_weights(engine, asked)
        return asked, ""
    try:
        if describe(engine).weights_sha256 == _weights(bundled("tiny")):
            return bundled("tiny"), ""
    except UserError as error:
        return None, str(error)
    return None, f"{engine.name} was not made of the bundled checkpoint; name its own with --reference"


def precision_of(engine: Path) -> str:
    """`fp32` or `fp16`, the key of the engine's bounds in `tfanet_engines.parity.TOLERANCES`."""
    if engine.suffix == ".safetensors":
        return "fp32"
    from tfanet_engines.weights import describe

    return describe(engine).precision


def gate_of(evaluation: Evaluation, precision: str) -> Gate:
    """The gate over the evaluation's pairs; `worst` are places in its `records`."""
    from tfanet_engines import gate

    pairs = [record.against.parity for record in evaluation.records if record.against is not None]
    return gate(pairs, precision, evaluation.drops)


def _weights(checkpoint: Path) -> str:
    from tfanet.checkpoint import load_model, weights_sha256

    return weights_sha256(load_model(checkpoint))
