"""Whether a file was made of the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from tfanet.errors import UserError
from tfanet_engines.onnx_file import OnnxFile, read_onnx
from tfanet_engines.sidecar import Sidecar, sidecar_path


def describe(engine: Path) -> Sidecar | OnnxFile:
    """What the sidecar of a .onnx or .plan says; of an ONNX file that has none, what it says itself."""
    alone = engine.suffix == ".onnx" and not sidecar_path(engine).exists()
    return read_onnx(engine) if alone else Sidecar.read(engine)


def require_weights(engine: Path, checkpoint: str | Path) -> None:
    """Raise `UserError` where the .onnx or .plan was made of other weights than those of `checkpoint`.

    What does not know its weights passes, and so does a checkpoint, which may be compared with any other.
    """
    if engine.suffix not in (".onnx", ".plan"):
        return
    from tfanet.checkpoint import load_model, weights_sha256

    made_of = describe(engine)
    if made_of.weights_sha256 not in (None, weights_sha256(load_model(checkpoint))):
        sidecar = made_of if isinstance(made_of, Sidecar) else made_of.sidecar
        remedy = f", or {sidecar.remedy}" if sidecar else ""
        raise UserError(
            f"{engine} was made of other weights than {checkpoint}; name the checkpoint it was made of"
            f"{remedy}"
        )
