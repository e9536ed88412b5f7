"""Whether a file has the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from tfanet.errors import UserError
from tfanet_engines.onnx_file import OnnxFile, read_onnx
from tfanet_engines.sidecar import Sidecar, sidecar_path


def describe(engine: Path) -> Sidecar | OnnxFile:
    """The sidecar of a .onnx or .plan, or the description of an ONNX file without a sidecar."""
    no_sidecar = engine.suffix == ".onnx" and not sidecar_path(engine).exists()
    return read_onnx(engine) if no_sidecar else Sidecar.read(engine)


def require_weights(engine: Path, checkpoint: str | Path) -> None:
    """Raise `UserError` if the .onnx or .plan `engine` has other weights than `checkpoint`.

    Files whose weights are unknown pass, and so do checkpoints, which may be compared with any other.
    """
    if engine.suffix not in (".onnx", ".plan"):
        return
    from tfanet.checkpoint import load_model, weights_sha256

    described = describe(engine)
    if described.weights_sha256 not in (None, weights_sha256(load_model(checkpoint))):
        sidecar = described if isinstance(described, Sidecar) else described.sidecar
        remedy = f", or {sidecar.remedy}" if sidecar else ""
        raise UserError(
            f"{engine} has other weights than {checkpoint}; name the checkpoint it was exported from{remedy}"
        )
