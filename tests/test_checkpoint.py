"""Checkpoints: exact round trips, and one line for every kind of invalid file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tfanet
from tfanet.checkpoint import load_config, save_model, weights_sha256
from tfanet.config import FORMAT, VARIANTS, TFANetConfig, preset
from tfanet.errors import UserError

SWITCHES = ("alignment", "fusion", "decoder", "transformer_dim", "transformer_heads", "conv_decoder_dim")
"""Fields that a config of tfanet-1 lacks."""


def without(values, *names):
    return {name: value for name, value in values.items() if name not in names}


TFANET_2 = preset("tiny").to_dict()
TFANET_1 = without(TFANET_2, "format", *SWITCHES)


@pytest.fixture(scope="module")
def checkpoint(random_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_model(random_model, path)
    return path


def test_round_trip(random_model, checkpoint):
    loaded = tfanet.load_model(checkpoint)
    assert loaded.config == random_model.config
    assert not loaded.training
    for name, tensor in random_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert weights_sha256(loaded) == weights_sha256(random_model)


def test_fp16_checkpoint_has_half_the_size_and_loads_as_fp32(random_model, checkpoint, tmp_path):
    half = tmp_path / "half.safetensors"
    save_model(random_model, half, dtype=torch.float16)
    assert half.stat().st_size < 0.51 * checkpoint.stat().st_size
    loaded = tfanet.load_model(half)
    weight = loaded.state_dict()["plus.0.w_v.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, random_model.state_dict()["plus.0.w_v.weight"].half().float())


def test_sha256_depends_on_the_weights(checkpoint):
    model = tfanet.load_model(checkpoint)
    before = weights_sha256(model)
    with torch.no_grad():
        model.decoder.alpha[0] += 1e-6
    assert weights_sha256(model) != before


def damaged(kind, checkpoint, tmp_path):
    path = tmp_path / "damaged.safetensors"
    tensors, metadata = load_file(checkpoint), {"format": FORMAT, "config": preset("tiny").to_json()}
    match kind:
        case "missing":
            return path
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "truncated":
            path.write_bytes(checkpoint.read_bytes()[:-100])
        case "pickle":
            torch.save(tensors, path)
        case "text":
            path.write_text("not weights at all, whatever the name says\n")
        case "foreign":
            save_file(tensors, path)
        case "missing-tensor":
            del tensors["decoder.alpha"]
            save_file(tensors, path, metadata)
        case "extra-tensor":
            save_file(tensors | {"more": torch.zeros(1)}, path, metadata)
        case "wrong-shape":
            save_file(tensors | {"decoder.alpha": torch.zeros(5)}, path, metadata)
        case "wrong-type":
            save_file(tensors | {"decoder.alpha": torch.zeros(3, dtype=torch.int8)}, path, metadata)
        case "huge":
            config = metadata["config"].replace('"decoder_dim": 32', '"decoder_dim": 1000000000')
            save_file(tensors, path, metadata | {"config": config})
        case "negative":
            config = metadata["config"].replace('"ssm_ratio": 1.0', '"ssm_ratio": -1.0')
            save_file(tensors, path, metadata | {"config": config})
        case "newer":
            config = metadata["config"].replace(FORMAT, "tfanet-3")
            save_file(tensors, path, {"format": "tfanet-3", "config": config})
        case "bad-config":
            save_file(tensors, path, metadata | {"config": '{"image_size": 96}'})
        case "no-json":
            save_file(tensors, path, metadata | {"config": "{"})
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("folder", "is a folder"),
        ("truncated", "truncated or not a .safetensors"),
        ("pickle", "truncated or not a .safetensors"),
        ("text", "truncated or not a .safetensors"),
        ("foreign", "not a TFANet checkpoint"),
        ("missing-tensor", r"missing \['decoder.alpha'\]"),
        ("extra-tensor", r"unknown \['more'\]"),
        ("wrong-shape", r"decoder.alpha is torch.float32 \[5\], its config needs torch.float32 \[3\]"),
        ("wrong-type", r"decoder.alpha is torch.int8 \[3\]"),
        ("huge", "decoder_dim must be from 1 to 8192"),
        ("negative", "ssm_ratio must be from"),
        ("newer", "has format 'tfanet-3'; this tfanet reads up to tfanet-2"),
        ("bad-config", "does not fit this version"),
        ("no-json", "is not JSON"),
    ],
)
def test_invalid_files_are_one_line(kind, message, checkpoint, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        tfanet.load_model(damaged(kind, checkpoint, tmp_path))
    assert "\n" not in str(caught.value)


def test_checkpoint_of_tfanet_1_is_the_full_model(random_model, checkpoint, tmp_path):
    path = tmp_path / "old.safetensors"
    save_file(load_file(checkpoint), path, {"format": "tfanet-1", "config": json.dumps(TFANET_1)})
    loaded = tfanet.load_model(path)
    full = TFANetConfig()
    assert loaded.config == preset("tiny", **{name: getattr(full, name) for name in SWITCHES})
    assert weights_sha256(loaded) == weights_sha256(random_model)


def test_checkpoint_contains_its_format(checkpoint):
    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == json.loads(metadata["config"])["format"] == "tfanet-2"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(without(TFANET_2, "fusion"), r"does not fit .*: \['fusion'\]", id="missing"),
        pytest.param(TFANET_2 | {"colour": "red"}, r"does not fit .*: \['colour'\]", id="unknown"),
        pytest.param(without(TFANET_2, "format"), r"does not fit .*'alignment'", id="no-format"),
        pytest.param(TFANET_1 | {"fusion": "cfsm"}, r"does not fit .*: \['fusion'\]", id="old-with-switch"),
        pytest.param(without(TFANET_1, "mlam_dim"), r"does not fit .*: \['mlam_dim'\]", id="old-missing"),
        pytest.param(TFANET_2 | {"alignment": "linear"}, "alignment must be one of none", id="switch"),
        pytest.param(TFANET_2 | {"format": 2}, "has format 2; this tfanet reads up to tfanet-2", id="format"),
        pytest.param([1], "does not fit .*: list", id="no-fields"),
    ],
)
def test_invalid_config_is_rejected(values, message):
    with pytest.raises(UserError, match=message) as caught:
        TFANetConfig.from_dict(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpoint_contains_the_variant(variant, tmp_path):
    fields = {"image_size": 32, "vmamba_depths": (1, 1, 1, 1), **VARIANTS[variant]}
    model = tfanet.build_model("tiny", **fields)
    save_model(model, tmp_path / "model.safetensors")
    assert load_config(tmp_path / "model.safetensors") == model.config
    assert weights_sha256(tfanet.load_model(tmp_path / "model.safetensors")) == weights_sha256(model)


def test_config_round_trip():
    config = preset("base", token_length=22)
    assert TFANetConfig.from_json(config.to_json()) == config
