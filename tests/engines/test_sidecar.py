"""Sidecars: written and read back; invalid ones are refused in one line."""

from __future__ import annotations

import json

import pytest
from small_engines import write_sidecar

from tfanet.config import PRESETS
from tfanet.errors import UserError
from tfanet_engines.sidecar import Sidecar, sidecar_path


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "model.plan"
    path.write_bytes(b"a plan" * 100)
    write_sidecar(path, PRESETS["tiny"], proof={"half_weight_share": 0.99}, batch=(1, 1, 8))
    return path


def test_a_sidecar_is_read_as_written(plan):
    written = write_sidecar(plan, PRESETS["tiny"], proof={"half_weight_share": 0.99}, batch=(1, 1, 8))
    sidecar = Sidecar.read(plan)
    sidecar.check_file(plan)
    assert sidecar == written
    assert sidecar.model_config() == PRESETS["tiny"]
    assert sidecar.batch == [1, 1, 8]
    assert [spec["name"] for spec in sidecar.signature["inputs"]] == ["image", "tokens"]
    size = PRESETS["tiny"].image_size
    assert sidecar.signature["outputs"][0]["shape"] == ["batch", size, size]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: b"A" + data[1:], lambda data: data + b"\0"],
    ids=["truncated", "altered", "longer"],
)
def test_an_altered_file_is_refused_with_its_rebuild_command(plan, damage):
    plan.write_bytes(damage(plan.read_bytes()))
    with pytest.raises(UserError, match=r"truncated or altered.*tfanet-export trt --fp16"):
        Sidecar.read(plan).check_file(plan)


def changed(**fields):
    return lambda text: json.dumps(json.loads(text) | fields)


def without(name):
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != name})


BAD = [
    pytest.param(lambda text: text[: len(text) // 2], "Invalid JSON", id="truncated"),
    pytest.param(lambda text: "[" * 100_000, "Invalid JSON", id="nested"),
    pytest.param(lambda text: "[1, 2]", "Input should be an object", id="a-list"),
    pytest.param(lambda text: "{}", "not a sidecar", id="empty-object"),
    pytest.param(changed(format_version=5), "format version 5", id="newer-version"),
    pytest.param(without("onnx_sha256"), "invalid: onnx_sha256: Field required", id="missing-field"),
    pytest.param(changed(colour="red"), "invalid: colour: Unexpected", id="unknown-field"),
    pytest.param(changed(file_sha256=7), "invalid: file_sha256: .*string", id="number-for-text"),
    pytest.param(changed(kind="pt"), "invalid: kind: .*onnx", id="unknown-kind"),
    pytest.param(changed(precision="int8"), "invalid: precision: .*fp16", id="unknown-precision"),
    pytest.param(changed(proof=None), "invalid: proof: .*object", id="no-proof"),
    pytest.param(changed(batch="1,1,8"), "invalid: batch: .*array", id="batch-as-text"),
    pytest.param(changed(batch=[1, 8]), r"invalid: batch: \[1, 8\]", id="batch-of-two"),
    pytest.param(changed(batch=[1, 8, 4]), r"invalid: batch: \[1, 8, 4\]", id="batch-not-in-order"),
    pytest.param(changed(batch=[1, 1, 8.5]), r"invalid: batch\[2\]: .*integer", id="batch-of-fractions"),
    pytest.param(changed(compute_capabilities=[]), "invalid: compute_cap", id="for-no-gpu"),
    pytest.param(changed(compute_capabilities=["8.0", "sm"]), "invalid: compute_cap", id="no-number"),
    pytest.param(changed(version_compatible=None), "invalid: version_comp", id="none-for-a-boolean"),
    pytest.param(changed(config={"image_size": 480}), "does not fit this version", id="foreign-config"),
]


@pytest.mark.parametrize(("edit", "message"), BAD)
def test_an_invalid_sidecar_is_refused(plan, edit, message):
    path = sidecar_path(plan)
    path.write_text(edit(path.read_text()))
    with pytest.raises(UserError, match=message):
        Sidecar.read(plan)


def test_a_sidecar_that_is_not_text_is_refused(plan):
    sidecar_path(plan).write_bytes(b"\xff\xfe\x00" * 50)
    with pytest.raises(UserError, match="Invalid JSON"):
        Sidecar.read(plan)


def test_a_missing_sidecar_is_refused(plan):
    sidecar_path(plan).unlink()
    with pytest.raises(UserError, match=r"model\.plan\.json is missing; copy it along with"):
        Sidecar.read(plan)


def test_a_missing_model_is_refused(plan):
    sidecar = Sidecar.read(plan)
    plan.unlink()
    with pytest.raises(UserError, match="does not exist"):
        sidecar.check_file(plan)
