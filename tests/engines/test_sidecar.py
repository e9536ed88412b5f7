"""Sidecars: what is written is read back, and whatever else is found is refused in one line."""

from __future__ import annotations

import json

import pytest

from tfanet.config import PRESETS
from tfanet.errors import UserError
from tfanet.files import sha256
from tfanet_engines.sidecar import Sidecar, sidecar_path


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "model.plan"
    path.write_bytes(b"a plan" * 100)
    sidecar = Sidecar.of(
        PRESETS["tiny"],
        kind="plan",
        weights_sha256="ab" * 32,
        precision="fp16",
        proof={"half_weight_share": 0.99},
        builder="tensorrt_rtx",
        builder_version="1.7.1",
        compute_capabilities=["8.9"],
        batch=(1, 1, 8),
        onnx_sha256="cd" * 32,
        file_sha256=sha256(path),
        rebuild="tfanet-export trt --fp16",
        cost={"seconds": 1.0},
    )
    sidecar.write(path)
    return path


def test_what_is_written_is_read_back(plan):
    sidecar = Sidecar.read(plan)
    sidecar.check_file(plan)
    assert sidecar.model_config() == PRESETS["tiny"]
    assert sidecar.batch == [1, 1, 8]
    assert [spec["name"] for spec in sidecar.signature["inputs"]] == ["image", "tokens"]
    size = PRESETS["tiny"].image_size
    assert sidecar.signature["outputs"][0]["shape"] == ["batch", size, size]
    assert sidecar == Sidecar.read(plan)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: b"A" + data[1:], lambda data: data + b"\0"],
    ids=["truncated", "altered", "longer"],
)
def test_another_file_is_refused_with_the_command_that_rebuilds_it(plan, damage):
    plan.write_bytes(damage(plan.read_bytes()))
    with pytest.raises(UserError, match=r"truncated or altered.*tfanet-export trt --fp16"):
        Sidecar.read(plan).check_file(plan)


def changed(**fields):
    return lambda text: json.dumps(json.loads(text) | fields)


def without(name):
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != name})


BAD = [
    pytest.param(lambda text: text[: len(text) // 2], "no JSON", id="truncated"),
    pytest.param(lambda text: "[" * 100_000, "no JSON", id="nested"),
    pytest.param(lambda text: "[1, 2]", "no sidecar", id="a-list"),
    pytest.param(lambda text: "{}", "no sidecar", id="empty-object"),
    pytest.param(changed(format_version=5), "format version 5", id="newer-version"),
    pytest.param(without("onnx_sha256"), "missing fields.*onnx_sha256", id="missing-field"),
    pytest.param(changed(colour="red"), "unknown fields.*colour", id="unknown-field"),
    pytest.param(changed(file_sha256=7), "wrong values.*file_sha256", id="number-for-text"),
    pytest.param(changed(kind="pt"), "wrong values.*kind", id="unknown-kind"),
    pytest.param(changed(precision="int8"), "wrong values.*precision", id="unknown-precision"),
    pytest.param(changed(proof=None), "wrong values.*proof", id="no-proof"),
    pytest.param(changed(batch="1,1,8"), "wrong values.*batch", id="batch-as-text"),
    pytest.param(changed(batch=[1, 8]), "wrong values.*batch", id="batch-of-two"),
    pytest.param(changed(batch=[1, 8, 4]), "wrong values.*batch", id="batch-not-in-order"),
    pytest.param(changed(batch=[1, 1, 8.5]), "wrong values.*batch", id="batch-of-fractions"),
    pytest.param(changed(compute_capabilities=[]), "wrong values.*compute_cap", id="for-no-gpu"),
    pytest.param(changed(compute_capabilities=["8.0", "sm"]), "wrong values.*compute_cap", id="no-number"),
    pytest.param(changed(version_compatible=None), "wrong values.*version_comp", id="none-for-a-truth-value"),
    pytest.param(changed(config={"image_size": 480}), "does not fit this version", id="foreign-config"),
]


@pytest.mark.parametrize(("edit", "message"), BAD)
def test_a_malformed_sidecar_is_refused(plan, edit, message):
    path = sidecar_path(plan)
    path.write_text(edit(path.read_text()))
    with pytest.raises(UserError, match=message):
        Sidecar.read(plan)


def test_a_sidecar_that_is_not_text_is_refused(plan):
    sidecar_path(plan).write_bytes(b"\xff\xfe\x00" * 50)
    with pytest.raises(UserError, match="no JSON"):
        Sidecar.read(plan)


def test_a_missing_sidecar_says_where_it_belongs(plan):
    sidecar_path(plan).unlink()
    with pytest.raises(UserError, match=r"model\.plan\.json is missing; keep it beside"):
        Sidecar.read(plan)


def test_a_missing_model_is_refused(plan):
    sidecar = Sidecar.read(plan)
    plan.unlink()
    with pytest.raises(UserError, match="does not exist"):
        sidecar.check_file(plan)
