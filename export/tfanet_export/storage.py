"""Write ONNX files of any size: weights above protobuf's 2 GB limit go to a separate file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfanet_engines.sidecar import external_data_path

if TYPE_CHECKING:
    import onnx

SINGLE_FILE_BYTES = 1_900_000_000
"""Weights up to this size are stored in the ONNX file itself; protobuf's limit is 2^31 - 1 bytes in all."""


@contextmanager
def written_onnx(proto: onnx.ModelProto, temporary: Path, final: Path) -> Iterator[None]:
    """Write `proto` to `temporary`; after the block, rename external weights to the name that `final` needs.

    An error in the block, such as a failed verification, removes them.
    """
    weights = save_onnx(proto, temporary)
    try:
        yield
        rename_weights(weights, temporary, final)
    finally:
        external_data_path(temporary).unlink(missing_ok=True)


def save_onnx(proto: onnx.ModelProto, path: Path) -> Path | None:
    """Write `proto` to `path` and check the file; returns the path of its external weights, None if internal.

    External weights are removed from `proto`, and their file is removed on an error.
    """
    import onnx

    weights = None
    if weight_bytes(proto) > SINGLE_FILE_BYTES:
        weights = external_data_path(path)
    try:
        if weights is None:
            onnx.save(proto, path)
        else:
            onnx.save(proto, path, save_as_external_data=True, location=weights.name, size_threshold=1024)
        onnx.checker.check_model(str(path))
    except BaseException:
        if weights is not None:
            weights.unlink(missing_ok=True)
        raise
    return weights


def rename_weights(weights: Path | None, temporary: Path, final: Path) -> None:
    """Rename external weights to the name that `final` needs, before `temporary` is renamed to `final`.

    Without external weights, removes those of an earlier `final`.
    """
    import onnx
    from onnx.external_data_helper import uses_external_data

    renamed = external_data_path(final)
    if weights is None:
        renamed.unlink(missing_ok=True)
        return
    proto = onnx.load(temporary, load_external_data=False)
    for tensor in proto.graph.initializer:
        if uses_external_data(tensor):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = renamed.name
    onnx.save(proto, temporary)
    weights.replace(renamed)


def weight_bytes(proto: onnx.ModelProto) -> int:
    """Size of all weights in the graph, in bytes."""
    import onnx

    sizes = (
        np.prod(tensor.dims, dtype=np.int64) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in proto.graph.initializer
    )
    return int(sum(sizes))


def file_bytes(path: Path) -> int:
    """Size of an ONNX file on disk in bytes, external weights included."""
    weights = external_data_path(path)
    return path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)
