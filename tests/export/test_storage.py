"""ONNX files with external weights, on a small model with a lowered size limit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tfanet.errors import UserError
from tfanet.files import atomic_path
from tfanet_engines import Sidecar, open_engine
from tfanet_export import storage
from tfanet_export.export import retarget, verification_pairs
from tfanet_export.storage import file_bytes, save_onnx, weight_bytes, written_onnx

pytestmark = pytest.mark.integration


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(storage, "SINGLE_FILE_BYTES", 1_000_000)


def test_weights_above_the_limit_are_external(small_limit, exported, random_model, tmp_path):
    single = exported["fp32"].path
    out = retarget(single, tmp_path / "big.onnx", "cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data", "big.onnx.json"]
    assert out.stat().st_size < 3_000_000 < single.stat().st_size
    assert file_bytes(out) == pytest.approx(single.stat().st_size, rel=0.05)
    images, tokens, _ = verification_pairs(random_model, 2)
    with open_engine(single) as expected, open_engine(out) as actual:
        np.testing.assert_array_equal(actual.infer(images, tokens), expected.infer(images, tokens))


def test_altered_external_weights_are_rejected(small_limit, exported, tmp_path):
    out = retarget(exported["fp32"].path, tmp_path / "big.onnx", "cpu")
    weights = tmp_path / "big.onnx.data"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="truncated or altered"):
        open_engine(out)
    weights.unlink()
    with pytest.raises(UserError, match="truncated or altered"):
        Sidecar.read(out).check_file(out)


def test_file_without_external_weights_removes_old_ones(small_limit, exported, tmp_path, monkeypatch):
    retarget(exported["fp32"].path, tmp_path / "model.onnx", "cpu")
    monkeypatch.undo()
    out = retarget(exported["fp32"].path, tmp_path / "model.onnx", "cpu")
    assert not (tmp_path / "model.onnx.data").exists()
    Sidecar.read(out).check_file(out)


def test_failed_verification_leaves_nothing(small_limit, exported, tmp_path):
    final = tmp_path / "model.onnx"
    proto = onnx.load(exported["fp32"].path)

    def write_and_fail():
        with atomic_path(final) as temporary, written_onnx(proto, temporary, final):
            assert len(list(tmp_path.iterdir())) == 2
            raise RuntimeError("not within tolerance")

    with pytest.raises(RuntimeError, match="tolerance"):
        write_and_fail()
    assert not list(tmp_path.iterdir())


def test_failed_check_leaves_nothing(small_limit, exported, tmp_path):
    proto = onnx.load(exported["fp32"].path)
    del proto.functions[:]  # the nodes have no function body any more
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(onnx.checker.ValidationError):
        save_onnx(proto, tmp_path / "broken.onnx")
    assert not (tmp_path / "broken.onnx.data").exists()


def test_weight_bytes_equal_the_initializers(exported):
    proto = onnx.load(exported["fp16"].path)
    assert weight_bytes(proto) == sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
