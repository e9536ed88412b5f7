"""The reference of an engine, and the parity gate."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from fake_engines import CONFIG, Boxes, FakeEngine, nothing, oracle

from tfanet.checkpoint import load_model, weights_sha256
from tfanet.errors import UserError, VerificationError
from tfanet_engines.onnx_file import CONFIG_KEY, WEIGHTS_KEY
from tfanet_engines.sidecar import Sidecar
from tfanet_eval.evaluation import evaluate
from tfanet_eval.reference import find_reference, gate_of, precision_of


@pytest.fixture
def onnx_of(tmp_path):
    """Write model.onnx with a sidecar that has the given weight hash."""

    def make(weights):
        path = tmp_path / "model.onnx"
        path.write_bytes(b"graph")
        Sidecar.of(
            CONFIG, kind="onnx", weights_sha256=weights, precision="fp16", proof={}, builder="torch.onnx",
            builder_version="0", onnx_sha256="", file_sha256="", rebuild="again", cost={"seconds": 1.0},
        ).write(path)  # fmt: skip
        return path

    return make


@pytest.fixture
def bundled(checkpoint, monkeypatch):
    """The random checkpoint, patched in as the bundled one."""
    monkeypatch.setattr("tfanet.weights.bundled", lambda name: checkpoint)
    return checkpoint


def test_bundled_checkpoint_is_found_by_its_weight_hash(onnx_of, bundled):
    engine = onnx_of(weights_sha256(load_model(bundled)))
    assert find_reference(engine, None) == (bundled, "")
    assert precision_of(engine) == "fp16"


def test_other_weights_have_no_reference(onnx_of, bundled):
    reference, why = find_reference(onnx_of("0" * 64), None)
    assert reference is None
    assert "--reference" in why


def test_plan_without_a_sidecar_has_no_reference(tmp_path, bundled):
    reference, why = find_reference(tmp_path / "model.plan", None)
    assert reference is None
    assert "model.plan.json is missing" in why


@pytest.fixture
def onnx_alone(tmp_path):
    """Write an FP16 ONNX file without a sidecar whose metadata has the given weight hash."""

    def make(weights):
        half = onnx.numpy_helper.from_array(np.ones(3, np.float16), "w")
        nodes = [onnx.helper.make_node("Identity", ["w"], ["y"])]
        model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], [half]))
        metadata = {CONFIG_KEY: CONFIG.to_json()} | ({WEIGHTS_KEY: weights} if weights else {})
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, tmp_path / "alone.onnx")
        return tmp_path / "alone.onnx"

    return make


def test_onnx_file_without_a_sidecar_is_described_by_its_metadata(onnx_alone, bundled, other_checkpoint):
    engine = onnx_alone(weights_sha256(load_model(bundled)))
    assert find_reference(engine, bundled) == (bundled, "")
    assert find_reference(engine, None) == (bundled, "")
    assert precision_of(engine) == "fp16"
    with pytest.raises(UserError, match="other weights"):
        find_reference(engine, other_checkpoint)


def test_onnx_file_without_weight_hash_is_compared_with_the_requested_reference(onnx_alone, bundled):
    engine = onnx_alone(None)
    assert find_reference(engine, bundled) == (bundled, "")
    assert find_reference(engine, None)[0] is None


@pytest.mark.parametrize("engine", ["model.safetensors", "model.onnx", "model.plan"])
def test_reference_must_be_a_checkpoint(tmp_path, engine):
    with pytest.raises(UserError, match=r"--reference .*other\.onnx is not a PyTorch checkpoint"):
        find_reference(tmp_path / engine, tmp_path / "other.onnx")


def test_reference_with_other_weights_is_an_error(onnx_of, checkpoint, other_checkpoint):
    engine = onnx_of(weights_sha256(load_model(checkpoint)))
    assert find_reference(engine, checkpoint) == (checkpoint, "")
    with pytest.raises(UserError, match="other weights"):
        find_reference(engine, other_checkpoint)


def test_checkpoint_is_compared_only_on_request(checkpoint, other_checkpoint):
    assert find_reference(checkpoint, None)[0] is None
    assert find_reference(checkpoint, other_checkpoint)[0] == other_checkpoint
    assert precision_of(checkpoint) == "fp32"


def test_closed_gate_names_engine_and_value():
    compared = evaluate(FakeEngine(oracle), Boxes(2), reference=FakeEngine(oracle))
    gate_of(compared, "fp32").require("model.onnx")
    worse = evaluate(FakeEngine(nothing), Boxes(2), reference=FakeEngine(oracle))
    with pytest.raises(VerificationError, match=r"model\.onnx: max logit error 2 "):
        gate_of(worse, "fp16").require("model.onnx")


def test_gate_without_pairs_is_closed():
    with pytest.raises(VerificationError, match="no pair"):
        gate_of(evaluate(FakeEngine(oracle), Boxes(2)), "fp32").require("model.onnx")


def test_metric_drop_closes_the_gate_even_if_masks_agree():
    compared = evaluate(FakeEngine(oracle), Boxes(2), reference=FakeEngine(oracle))
    worse = tuple(dataclasses.replace(record, intersection=0) for record in compared.records)
    gate = gate_of(dataclasses.replace(compared, records=worse), "fp16")
    assert [failure[:4] for failure in gate.failures] == ["mIoU", "oIoU"]
