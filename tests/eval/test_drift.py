"""A fault planted in one block is found and repaired without a hint, and the repair reaches the ONNX file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import tfanet
from tfanet.blocks import blocks_of, hook_blocks, tensors_of
from tfanet.checkpoint import save_model, weights_sha256
from tfanet.errors import UserError
from tfanet.weights import bundled
from tfanet_eval.cli import evaluate as cli
from tfanet_export import cli as export_cli
from tfanet_export import export_onnx
from tfanet_export.deploy import deployment_model
from tfanet_export.half_arithmetic import half_arithmetic, half_logits
from tfanet_export.precision import Precision

SIZE, GUILTY = 96, "stage2.kps"


def plant(model):
    """Scale two factors of equation 16 up and what reads their product down: FP32 is the same to the bit.

    The product passes 65504, so in FP16 it is infinite, inside the block: no output of the block is large.
    """
    with torch.no_grad():
        block = model.plus[1]
        block.w_v.weight *= 2**8
        block.w_l.weight *= 2**8
        block.local.weight /= 2**16
    return model


@pytest.fixture(scope="module")
def sound():
    return tfanet.load_model(bundled("tiny"), image_size=SIZE).eval()


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    path = tmp_path_factory.mktemp("planted") / "planted.safetensors"
    save_model(plant(tfanet.load_model(bundled("tiny"), image_size=SIZE)), path)
    return path


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, SIZE, SIZE, 3)).astype(np.uint8)
    tokens = torch.zeros(1, 17, dtype=torch.int64)
    tokens[0, :4] = torch.tensor([49406, 736, 1125, 49407])
    return torch.from_numpy(image), tokens


def test_blocks_cover_the_weights_once(sound):
    blocks = blocks_of(sound)
    owned = [id(p) for block in blocks.values() for p in block.parameters()]
    assert len(owned) == len(set(owned))
    rest = {name for name, p in sound.named_parameters() if id(p) not in set(owned)}
    assert rest == {"text.tower.token_embedding.weight", "text.tower.positional_embedding", "decoder.alpha"}
    assert GUILTY in blocks


def test_half_arithmetic_rounds_and_overflows():
    a = torch.full((1, 4), 300.0).half()
    with half_arithmetic():
        assert torch.isinf(a * a).all()
        assert torch.isinf(a @ a.mT).all()
        # A sum beyond FP16's steps between whole numbers: kept by FP32 sums, lost by FP16 ones.
        assert (torch.ones(1, 4096).half() @ torch.ones(4096, 1).half() / 4096).item() == 1
        assert (a.float() * a).dtype == torch.float32
        x = torch.tensor([2049.0]).half() + torch.tensor([1.0]).half()
    assert x.dtype == torch.half
    assert x.item() == 2048  # 2049 is 2048 in FP16, and 2049 again


def test_half_logits_are_close_to_pytorchs_own_half(sound, inputs):
    half = deployment_model(sound, fp16=True)
    with torch.inference_mode():
        native = half(*inputs)
        exact = sound(*inputs)
    ours = half_logits(half, *inputs)
    assert torch.equal(ours > 0, native > 0) or ((ours > 0) != (native > 0)).float().mean() < 1e-3
    assert 0 < (ours - exact).abs().max() < 0.05 * exact.std()
    assert (ours - native).abs().max() < 0.05 * exact.std()


@pytest.mark.parametrize("keep", [(), (GUILTY,), "all"])
def test_kept_blocks_compute_in_fp32_and_the_others_in_fp16(sound, inputs, keep):
    keep = tuple(blocks_of(sound)) if keep == "all" else keep
    half = deployment_model(sound, fp16=True, keep_fp32=keep)
    dtypes = {}

    def seen(name, block, args, _kwargs, output):
        dtypes[name] = {x.dtype for x in tensors_of(args)} | {p.dtype for p in block.parameters()}

    with hook_blocks(half, seen):
        half_logits(half, *inputs)
    assert {name for name, found in dtypes.items() if found == {torch.float32}} == set(keep)


def test_unknown_blocks_are_refused(sound):
    with pytest.raises(UserError, match=r"no block stage9.kps; its blocks: text.block1, "):
        deployment_model(sound, fp16=True, keep_fp32=["stage9.kps"])


@pytest.mark.slow
def test_a_planted_overflow_is_found_repaired_and_exported(command, sound, broken, inputs, shapes_root):
    planted = tfanet.load_model(broken, image_size=SIZE).eval()
    with torch.inference_mode():
        assert torch.equal(planted(*inputs), sound(*inputs))

    found = command(
        cli.main, "drift", "--fp16", "-c", broken, "--image-size", SIZE, "--data", shapes_root, "--pairs", 1,
        "--search-pairs", 2, "--budget", 0.2, "--propose", "precision.json", "--svg", "drift.svg",
        "--json", "drift.json",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert f"FP16 overflows in {GUILTY}\n" in found.out
    with open("precision.json") as file:
        content = json.load(file)
    assert content["keep_fp32"] == [GUILTY]
    assert content["weights_sha256"] == weights_sha256(planted)
    figures = content["figures"]
    assert figures["oIoU_fp16"] is None
    assert 100 * (figures["oIoU_fp32"] - figures["oIoU_kept"]) <= 0.2
    with open("drift.json") as file:
        blocks = {row["block"]: row for row in json.load(file)["blocks"]}
    assert [name for name, row in blocks.items() if row["own"] == "overflow"] == [GUILTY]
    assert blocks["stage1.kps"]["half"] < 0.01
    assert blocks["stage4.kfs1"]["half"] == "overflow"
    assert blocks[GUILTY]["largest"] < 1e4
    assert all(math.isfinite(row["onnx"]) for row in blocks.values() if row["onnx"] != "overflow")
    with open("drift.svg") as file:
        assert file.read().count("overflows</text>") >= 2

    repaired = command(
        export_cli.main, "onnx", "-c", broken, "--image-size", SIZE, "--fp16", "-o", "a.onnx", "--pairs", 1,
        "--precision", "precision.json",
    )  # fmt: skip
    assert repaired.code == 0, repaired.err
    proto = onnx.load("a.onnx")
    assert {p.value for p in proto.metadata_props if p.key == "tfanet.keep_fp32"} == {GUILTY}
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    assert kinds["plus.1.w_v.weight"] == onnx.TensorProto.FLOAT
    assert kinds["plus.0.w_v.weight"] == onnx.TensorProto.FLOAT16
    with open("a.onnx.json") as file:
        assert "--precision precision.json" in json.load(file)["rebuild"]


def test_a_precision_file_of_other_weights_is_refused(sound, tmp_path):
    Precision("ab" * 32, (GUILTY,)).write(tmp_path / "p.json")
    with pytest.raises(UserError, match="made for other weights"):
        export_onnx(sound, tmp_path / "a.onnx", fp16=True, precision_file=Precision.read(tmp_path / "p.json"))
    (tmp_path / "p.json").write_text('{"weights": 1}')
    with pytest.raises(UserError, match="is not a precision file"):
        Precision.read(tmp_path / "p.json")


def test_the_export_names_the_block_that_overflows(command, broken):
    refused = command(export_cli.main, "onnx", "-c", broken, "--image-size", SIZE, "--fp16", "-o", "a.onnx")
    assert refused.code == 1
    assert f"overflows in block {GUILTY}" in refused.err
    assert "tfanet-eval drift --fp16" in refused.err
    assert not list(Path().glob("*a.onnx*"))
