"""Which PyTorch checkpoint an engine is held against, and whether it is close enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tfanet.errors import UserError, VerificationError

if TYPE_CHECKING:
    from tfanet_engines import Sidecar
    from tfanet_engines.onnx_file import OnnxFile
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

    if asked is not None:
        made_of = _description(engine).weights_sha256
        if made_of is not None and made_of != _weights(asked):
            raise UserError(
                f"{engine} was made of other weights than {asked}; name the checkpoint it was made of"
            )
        return asked, ""
    try:
        if _description(engine).weights_sha256 == _weights(bundled("tiny")):
            return bundled("tiny"), ""
    except UserError as error:
        return None, str(error)
    return None, f"{engine.name} was not made of the bundled checkpoint; name its own with --reference"


def precision_of(engine: Path) -> str:
    """`fp32` or `fp16`, the key of the engine's bounds in `tfanet_engines.parity.TOLERANCES`."""
    if engine.suffix == ".safetensors":
        return "fp32"
    return _description(engine).precision


def verify(evaluation: Evaluation, precision: str, what: str) -> None:
    """Raise `VerificationError`, naming `what` and the figure, unless the parity bounds hold."""
    from tfanet_engines import check

    if evaluation.comparison is None:
        raise VerificationError(f"{what}: nothing was compared with the reference")
    try:
        check(evaluation.comparison.parity, precision, miou_drop=evaluation.miou_drop)
    except VerificationError as error:
        raise VerificationError(f"{what}: {error}") from error


def _description(engine: Path) -> Sidecar | OnnxFile:
    """What the sidecar of a .onnx or .plan says; of an ONNX file that has none, what it says itself."""
    from tfanet_engines import Sidecar
    from tfanet_engines.onnx_file import read_onnx
    from tfanet_engines.sidecar import sidecar_path

    alone = engine.suffix == ".onnx" and not sidecar_path(engine).exists()
    return read_onnx(engine) if alone else Sidecar.read(engine)


def _weights(checkpoint: Path) -> str:
    from tfanet.checkpoint import load_model, weights_sha256

    return weights_sha256(load_model(checkpoint))
