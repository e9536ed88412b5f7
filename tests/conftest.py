"""What many tests share: a model with random weights, a small synthetic data set."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tfanet_export import ExportReport


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = pytest.mark.skip(reason="no CUDA device")
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        missing["tensorrt"] = pytest.mark.skip(reason="the full TensorRT package is not installed")
    for item in items:
        for name, skip in missing.items():
            if item.get_closest_marker(name):
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plans that the tests build are not noted as the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("user-data")))
        yield


@pytest.fixture(scope="session")
def random_model():
    """Preset `tiny` with seeded random weights, in evaluation mode. Do not change it."""
    import tfanet

    torch.manual_seed(0)
    return tfanet.build_model("tiny").eval()


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic RefCOCO with all splits. Do not change it."""
    from tfanet.data.shapes import write_shapes

    counts = {"train": 16, "val": 6, "testA": 4, "testB": 4}
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", counts=counts)


@pytest.fixture(scope="session")
def gref_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic G-Ref with both of its divisions. Do not change it.

    refs(umd).p has train, val and test; refs(google).p has the same references by object, in train and val:
    those of umd's val are google's train.
    """
    from tfanet.data.shapes import write_shapes

    counts = {"train": 6, "val": 4, "test": 2}
    root = write_shapes(tmp_path_factory.mktemp("data") / "gref", "refcocog", counts=counts)
    refs = pickle.loads((root / "refcocog/refs(umd).p").read_bytes())
    for ref in refs:
        ref["split"] = "train" if ref["split"] == "val" else "val"
    (root / "refcocog/refs(google).p").write_bytes(pickle.dumps(refs))
    return root


@pytest.fixture(scope="session")
def exported_fp16(random_model, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """`random_model` as an FP16 ONNX file with its sidecar. Do not change the file."""
    from tfanet_export import export_onnx

    return export_onnx(random_model, tmp_path_factory.mktemp("exported") / "fp16.onnx", fp16=True, pairs=4)


@pytest.fixture(scope="session")
def exported(
    random_model, exported_fp16, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ExportReport]:
    """`random_model` as ONNX files `fp32` and `fp16` with sidecars. Do not change the files."""
    from tfanet_export import export_onnx

    path = tmp_path_factory.mktemp("exported") / "fp32.onnx"
    return {"fp32": export_onnx(random_model, path, pairs=4), "fp16": exported_fp16}
