"""Which PyTorch checkpoint an engine is held against, and whether it is close enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tfanet.errors import UserError, VerificationError

if TYPE_CHECKING:
    from tfanet_eval.accuracy import Evaluation


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


def verify(evaluation: Evaluation, precision: str, what: str) -> None:
    """Raise `VerificationError`, naming `what` and the figure, unless the parity bounds hold."""
    from tfanet_engines import check

    if evaluation.comparison is None:
        raise VerificationError(f"{what}: nothing was compared with the reference")
    try:
        check(evaluation.comparison.parity, precision, miou_drop=evaluation.drops["mIoU"])
    except VerificationError as error:
        raise VerificationError(f"{what}: {error}") from error


def _weights(checkpoint: Path) -> str:
    from tfanet.checkpoint import load_model, weights_sha256

    return weights_sha256(load_model(checkpoint))
