"""Drift finds an overflow planted in one block, proposes that block, and the export keeps it in FP32."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

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
from tfanet_eval.drift.chart import draw, drift_figure
from tfanet_eval.drift.measure import BlockDrift, RelativeError, by_error
from tfanet_eval.drift.propose import propose
from tfanet_export import cli as export_cli
from tfanet_export import export_onnx
from tfanet_export.deploy import deployment_model
from tfanet_export.half_arithmetic import half_arithmetic, half_logits
from tfanet_export.precision import Precision

pytestmark = pytest.mark.integration

SIZE, PLANTED = 96, "stage2.kps"


def plant(model):
    """Scale two factors of equation 16 up and the layer after their product down; FP32 results do not change.

    Inside the block the product exceeds 65504 and is infinite in FP16; no output of the block is large.
    """
    with torch.no_grad():
        block = model.plus[1]
        block.w_v.weight *= 2**8
        block.w_l.weight *= 2**8
        block.local.weight /= 2**16
    return model


@pytest.fixture(scope="module")
def model():
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


def test_every_weight_belongs_to_one_block(model):
    blocks = blocks_of(model)
    owned = [id(p) for block in blocks.values() for p in block.parameters()]
    assert len(owned) == len(set(owned))
    rest = {name for name, p in model.named_parameters() if id(p) not in set(owned)}
    assert rest == {"text.tower.token_embedding.weight", "text.tower.positional_embedding", "decoder.alpha"}
    assert PLANTED in blocks


def test_half_arithmetic_rounds_and_overflows():
    a = torch.full((1, 4), 300.0).half()
    with half_arithmetic():
        assert torch.isinf(a * a).all()
        assert torch.isinf(a @ a.mT).all()
        # FP32 sums reach 4096; an FP16 sum of ones stops at 2048.
        assert (torch.ones(1, 4096).half() @ torch.ones(4096, 1).half() / 4096).item() == 1
        assert (a.float() * a).dtype == torch.float32
        x = torch.tensor([2049.0]).half() + torch.tensor([1.0]).half()
    assert x.dtype == torch.half
    assert x.item() == 2048  # 2049 rounds to 2048 in FP16, before and after the sum


def test_half_logits_are_close_to_pytorch_half(model, inputs):
    half = deployment_model(model, fp16=True)
    with torch.inference_mode():
        native = half(*inputs)
        fp32 = model(*inputs)
    logits = half_logits(half, *inputs)
    assert torch.equal(logits > 0, native > 0) or ((logits > 0) != (native > 0)).float().mean() < 1e-3
    assert 0 < (logits - fp32).abs().max() < 0.05 * fp32.std()
    assert (logits - native).abs().max() < 0.05 * fp32.std()


@pytest.mark.parametrize("keep", [(), (PLANTED,), "all"])
def test_kept_blocks_compute_in_fp32_and_the_others_in_fp16(model, inputs, keep):
    keep = tuple(blocks_of(model)) if keep == "all" else keep
    half = deployment_model(model, fp16=True, keep_fp32=keep)
    dtypes = {}

    def record(name, block, args, _kwargs, output):
        dtypes[name] = {x.dtype for x in tensors_of(args)} | {p.dtype for p in block.parameters()}

    with hook_blocks(half, record):
        half_logits(half, *inputs)
    assert {name for name, used in dtypes.items() if used == {torch.float32}} == set(keep)


def test_unknown_blocks_are_rejected(model):
    with pytest.raises(UserError, match=r"no block stage9.kps; its blocks: text.block1, "):
        deployment_model(model, fp16=True, keep_fp32=["stage9.kps"])


def block(name, own, half, onnx=None):
    def error(value):
        return RelativeError(value**2, 1.0)

    return BlockDrift(name, error(own), error(half), None if onnx is None else error(onnx))


def test_blocks_by_error_start_with_overflow():
    drifts = [block("a", 1e-3, 1e-3), block("b", math.inf, 1e-3), block("c", 1e-2, 1e-3), block("d", 0, 0)]
    assert by_error(drifts) == ["b", "c", "a", "d"]


def test_chart_shows_the_errors_of_every_block():
    drifts = [
        block("small", 2e-4, 3e-4, 1e-4),
        block("none", 0.0, 1e-9, 0.0),
        block("inside", math.inf, math.inf, 4e-3),
        block("after", 1e-3, math.inf, math.inf),
    ]
    axes = drift_figure(drifts, "a title").axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([2e-4, 1e-5, 1, 1e-3])
    assert [bar.get_y() + bar.get_height() / 2 for bar in axes.patches] == pytest.approx([0, 1, 2, 3])
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[1] == colours[3] != colours[2]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small", "none", "inside", "after"]
    half, onnx = ({"x": list(line.get_xdata()), "y": list(line.get_ydata())} for line in axes.lines)
    assert half == {"x": pytest.approx([3e-4, 1e-5]), "y": [0, 1]}
    assert onnx == {"x": pytest.approx([1e-4, 1e-5, 4e-3]), "y": [0, 1, 2]}
    assert axes.get_xlim() == (1e-5, 1)

    svg = draw(drifts, "a <title> & $5$")
    texts = [text.text for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("overflows") == 2
    assert {"small", "0.03 %", "1e-07 %", "accumulated, ONNX Runtime", "a <title> & $5$"} <= set(texts)
    assert svg == draw(drifts, "a <title> & $5$")
    without = draw([block("small", 2e-4, 3e-4)], "a title")
    assert "ONNX Runtime" not in without


@pytest.mark.parametrize("title", ["2024-tiny.safetensors", "71 %", "tiny"])
def test_chart_of_any_title_is_valid_svg(title):
    svg = draw([BlockDrift("text.block1")], title)
    ids = [element.get("id") for element in ElementTree.fromstring(svg).iter() if element.get("id")]
    assert ids
    assert all(name[0].isalpha() for name in ids)
    assert all(f'"{name}"' in svg for name in re.findall(r'href="#([^"]+)"', svg))


def test_proposal_is_minimal(monkeypatch):
    """A fake model for which blocks b and d together keep the budget; the order puts others between them."""
    monkeypatch.setattr(
        "tfanet_eval.drift.propose.deployment_model", lambda model, fp16, keep_fp32: keep_fp32
    )
    tried = []

    def oiou(model, pairs, half=False):
        return 0.8 if not half or model >= {"b", "d"} else None

    monkeypatch.setattr("tfanet_eval.drift.propose.oiou", oiou)
    proposal = propose(None, [], list("abcdef"), on_progress=tried.append)
    assert proposal.keep_fp32 == ("b", "d")
    assert proposal.within
    assert (proposal.fp32, proposal.half, proposal.repaired) == (0.8, None, 0.8)
    assert tried == list(range(1, proposal.tried + 1))
    impossible = propose(None, [], list("abc"))
    assert not impossible.within
    assert impossible.keep_fp32 == ("a", "b", "c")


@pytest.mark.slow
def test_planted_overflow_is_found_repaired_and_exported(command, model, broken, inputs, shapes_root):
    planted = tfanet.load_model(broken, image_size=SIZE).eval()
    with torch.inference_mode():
        assert torch.equal(planted(*inputs), model(*inputs))

    measured = command(
        cli.main, "drift", "--fp16", "-c", broken, "--image-size", SIZE, "--data", shapes_root, "--pairs", 1,
        "--search-pairs", 2, "--budget", 0.2, "--propose", "precision.json", "--svg", "drift.svg",
        "--json", "drift.json",
    )  # fmt: skip
    assert measured.code == 0, measured.err
    assert f"FP16 overflows in {PLANTED}\n" in measured.out
    with open("precision.json") as file:
        content = json.load(file)
    assert content["keep_fp32"] == [PLANTED]
    assert content["weights_sha256"] == weights_sha256(planted)
    values = content["figures"]
    assert values["oIoU_fp16"] is None
    assert 100 * (values["oIoU_fp32"] - values["oIoU_kept"]) <= 0.2
    with open("drift.json") as file:
        blocks = {row["block"]: row for row in json.load(file)["blocks"]}
    assert [name for name, row in blocks.items() if row["own"] == "overflow"] == [PLANTED]
    assert blocks["stage1.kps"]["half"] < 0.01
    assert blocks["stage4.kfs1"]["half"] == "overflow"
    assert blocks[PLANTED]["largest"] < 1e4
    assert all(math.isfinite(row["onnx"]) for row in blocks.values() if row["onnx"] != "overflow")
    with open("drift.svg") as file:
        assert file.read().count("overflows</text>") >= 2

    repaired = command(
        export_cli.main, "onnx", "-c", broken, "--image-size", SIZE, "--fp16", "-o", "a.onnx", "--pairs", 1,
        "--precision", "precision.json",
    )  # fmt: skip
    assert repaired.code == 0, repaired.err
    proto = onnx.load("a.onnx")
    assert {p.value for p in proto.metadata_props if p.key == "tfanet.keep_fp32"} == {PLANTED}
    dtypes = {t.name: t.data_type for t in proto.graph.initializer}
    assert dtypes["plus.1.w_v.weight"] == onnx.TensorProto.FLOAT
    assert dtypes["plus.0.w_v.weight"] == onnx.TensorProto.FLOAT16
    with open("a.onnx.json") as file:
        assert "--precision precision.json" in json.load(file)["rebuild"]


def test_precision_file_of_other_weights_is_rejected(model, tmp_path):
    Precision("ab" * 32, (PLANTED,)).write(tmp_path / "p.json")
    with pytest.raises(UserError, match="made for other weights"):
        export_onnx(model, tmp_path / "a.onnx", fp16=True, precision_file=Precision.read(tmp_path / "p.json"))


def test_export_names_the_block_that_overflows(command, broken):
    exported = command(export_cli.main, "onnx", "-c", broken, "--image-size", SIZE, "--fp16", "-o", "a.onnx")
    assert exported.code == 1
    assert f"overflows in block {PLANTED}" in exported.err
    assert "tfanet-eval drift --fp16" in exported.err
    assert not list(Path().glob("*a.onnx*"))
