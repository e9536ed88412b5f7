"""Description and checks of an ONNX file before it is built or run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tfanet.config import TFANetConfig
from tfanet.errors import UserError
from tfanet.files import require_file
from tfanet_engines.sidecar import Sidecar, model_sha256, sidecar_path
from tfanet_plugins import plugin_layers, use_plugin_bodies

if TYPE_CHECKING:
    import onnx

CONFIG_KEY = "tfanet.config"
"""The key of `ModelProto.metadata_props` whose value is `TFANetConfig.to_json()`."""
WEIGHTS_KEY = "tfanet.weights_sha256"
"""The key for `tfanet.checkpoint.weights_sha256`."""
KEEP_FP32_KEY = "tfanet.keep_fp32"
"""The key for the names, separated by spaces, of blocks that a precision file kept FP32."""
LONGEST_REASON = 300


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that tfanet exported."""

    path: Path
    sha256: str
    config: TFANetConfig
    weights_sha256: str | None
    precision: Literal["fp32", "fp16"]
    """fp16 if most weights are FP16, or if a precision file chose which are."""
    keep_fp32: tuple[str, ...]
    """Names of the blocks (`tfanet.blocks`) that a precision file kept FP32."""
    plugin_layers: tuple[str, ...]
    """A name for each layer of `with_plugin_bodies` that full TensorRT must run as a plugin."""
    sidecar: Sidecar | None


def read_onnx(path: str | Path) -> OnnxFile:
    """Describe the ONNX file at `path`.

    Raises `UserError` if it is missing, not ONNX, truncated, altered since its sidecar was written, or not
    exported by tfanet.
    """
    path = require_file(path, "ONNX file")
    sidecar = Sidecar.read(path) if sidecar_path(path).exists() else None
    if sidecar:
        sidecar.check_file(path)
    proto = _load(path)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    use_plugin_bodies(proto)
    keep = tuple(metadata.get(KEEP_FP32_KEY, "").split())
    return OnnxFile(
        path=path,
        sha256=model_sha256(path),
        config=config_of(path, metadata),
        weights_sha256=sidecar.weights_sha256 if sidecar else metadata.get(WEIGHTS_KEY),
        precision="fp16" if keep else _precision(proto),
        keep_fp32=keep,
        plugin_layers=tuple(plugin_layers(proto)),
        sidecar=sidecar,
    )


def with_plugin_bodies(path: Path) -> bytes:
    """The ONNX model at `path` for full TensorRT, with plugins in its function bodies.

    External weights stay in their file next to `path`. Raises `UserError` as `read_onnx`.
    """
    proto = _load(path)
    use_plugin_bodies(proto)
    return proto.SerializeToString()


def config_of(path: Path, metadata: dict[str, str]) -> TFANetConfig:
    """The model's config from an ONNX file's metadata or its sidecar; `UserError` if neither has it."""
    if CONFIG_KEY in metadata:
        return TFANetConfig.from_json(metadata[CONFIG_KEY])
    if sidecar_path(path).exists():
        return Sidecar.read(path).model_config()
    raise _not_exported(path)


def _not_exported(path: Path) -> UserError:
    return UserError(f"{path} was not exported by tfanet (no metadata {CONFIG_KEY}); use tfanet-export onnx")


def check_structure(path: Path) -> None:
    """Raise `UserError` unless the file passes `onnx.checker`.

    For files without a sidecar: a runtime's parser is native code, and the checker rejects most damaged files
    first.
    """
    import onnx

    proto = _load(path)
    if not any(entry.key == CONFIG_KEY for entry in proto.metadata_props):
        raise _not_exported(path)
    del proto
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise UserError(f"{path} is not a valid ONNX file: {reason}; export it again") from error


def _load(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise UserError(f"{path} is truncated or not an ONNX file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not proto.ir_version or not proto.graph.node:
        raise UserError(f"{path} is not an ONNX file: it has no graph")
    return proto


def _precision(proto: onnx.ModelProto) -> Literal["fp32", "fp16"]:
    from onnx import TensorProto

    counts: Counter[int] = Counter()
    for tensor in proto.graph.initializer:
        counts[tensor.data_type] += prod(tensor.dims)
    return "fp16" if counts[TensorProto.FLOAT16] > counts[TensorProto.FLOAT] else "fp32"
