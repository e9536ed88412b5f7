"""Which PyTorch checkpoint an engine is held against, and whether it is close enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tfanet.errors import UserError, VerificationError

if TYPE_CHECKING:
    from tfanet_eval.accuracy import Evaluation


def find_reference(engine: Path, asked: Path | None) -> tuple[Path | None, str]:
    """The checkpoint to compare `engine` with; where there is none, None and the reason.

    `asked` is taken if given, otherwise the bundled checkpoint if the engine's sidecar says that it was made
    of it. `UserError` when the sidecar says that the engine was made of other weights than those of `asked`.
    """
    if engine.suffix == ".safetensors":
        return asked, "the engine is a PyTorch checkpoint itself; --reference compares it with another"
    from tfanet.weights import bundled
    from tfanet_engines import Sidecar

    if asked is not None:
        made_of = Sidecar.read(engine).weights_sha256
        if made_of is not None and made_of != _weights(asked):
            raise UserError(
                f"{engine} was made of other weights than {asked}; name the checkpoint it was made of"
            )
        return asked, ""
    try:
        if Sidecar.read(engine).weights_sha256 == _weights(bundled("tiny")):
            return bundled("tiny"), ""
    except UserError as error:
        return None, str(error)
    return None, f"{engine.name} was not made of the bundled checkpoint; name its own with --reference"


def precision_of(engine: Path) -> str:
    """`fp32` or `fp16`, the key of the engine's bounds in `tfanet_engines.parity.TOLERANCES`."""
    if engine.suffix == ".safetensors":
        return "fp32"
    from tfanet_engines import Sidecar

    return Sidecar.read(engine).precision


def verify(evaluation: Evaluation, precision: str, what: str) -> None:
    """Raise `VerificationError`, naming `what` and the figure, unless the parity bounds hold."""
    from tfanet_engines import check

    if evaluation.comparison is None:
        raise VerificationError(f"{what}: nothing was compared with the reference")
    try:
        check(evaluation.comparison.parity, precision, miou_drop=evaluation.miou_drop)
    except VerificationError as error:
        raise VerificationError(f"{what}: {error}") from error


def _weights(checkpoint: Path) -> str:
    from tfanet.checkpoint import load_model, weights_sha256

    return weights_sha256(load_model(checkpoint))
