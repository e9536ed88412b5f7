"""The variants of Table 3: every combination trains, exports and ignores padding."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch
from torch import nn

import tfanet
from tfanet.baseline import ConvDecoder, WordProduct
from tfanet.config import VARIANTS, Alignment, Decoder, FusionKind, preset
from tfanet.data.preprocess import tokenize
from tfanet.text import TextFeatures
from tfanet.transformer import EncoderLayer, JointTransformer

pytestmark = pytest.mark.integration

COMBINATIONS = [
    pytest.param({"alignment": alignment, "fusion": fusion, "decoder": decoder}, id="-".join(chosen))
    for chosen in product(get_args(Alignment), get_args(FusionKind), get_args(Decoder))
    for alignment, fusion, decoder in [chosen]
]


def build(size=32, **fields):
    torch.manual_seed(0)
    return tfanet.build_model("tiny", image_size=size, vmamba_depths=(1, 1, 1, 1), **fields)


def pairs(size, expressions):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(expressions), size, size, 3), generator=rng, dtype=torch.uint8)
    return images, torch.from_numpy(tokenize(expressions, 17))


def features(dim, length, valid):
    """Random `TextFeatures` [1, dim, length], zero after the first `valid` tokens."""
    mask = torch.arange(length)[None] < valid
    return TextFeatures(torch.randn(1, dim, length) * mask[:, None], torch.randn(1, dim), mask)


def test_each_row_of_table_3_changes_one_part():
    parents = {"b": ("a", "fusion"), "c": ("b", "alignment"), "d": ("b", "alignment"), "e": ("d", "decoder")}
    for row, (parent, part) in parents.items():
        changed = {name for name in VARIANTS[row] if VARIANTS[row][name] != VARIANTS[parent][name]}
        assert changed == {part}, row
    assert preset("base", **VARIANTS["e"]) == preset("base")


@pytest.mark.parametrize("fields", COMBINATIONS)
def test_every_parameter_has_a_gradient(fields):
    model = build(64, **fields).train()  # at 32 the last stage's scans have one token and no decay to learn
    images, tokens = pairs(64, ["the small red circle", "a star"])
    target = torch.zeros(2, 64, 64)
    target[:, 16:40, 8:32] = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss():
        return nn.functional.binary_cross_entropy_with_logits(model(images, tokens), target)

    before = loss()
    before.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert loss() < before


@pytest.mark.parametrize("fields", COMBINATIONS)
def test_words_change_the_logits_and_padding_does_not(fields):
    model = build(**fields).eval()
    images, tokens = pairs(32, ["the small red circle", "a star"])
    embedding = model.text.tower.token_embedding.weight

    def change_of_logits(token):
        with torch.inference_mode():
            before = model(images, tokens)
            kept = embedding[token].clone()
            embedding[token] += torch.randn_like(kept)
            change = (model(images, tokens) - before).abs().amax((1, 2))
            embedding[token] = kept
        return change

    assert change_of_logits(0).tolist() == [0, 0]
    assert (change_of_logits(int(tokens[0, 2])) > 1e-7).tolist() == [True, False]


@pytest.mark.parametrize("alignment", [WordProduct, JointTransformer])
def test_padding_does_not_change_the_alignment(alignment):
    torch.manual_seed(0)
    module = alignment(6, 5, preset("tiny"))
    visual, padded = torch.randn(1, 6, 4, 3), features(5, length=7, valid=4)
    long = module(visual, padded)
    short = module(visual, TextFeatures(padded.words[..., :4], padded.sentence, padded.valid[:, :4]))
    assert long.words.shape == (1, 6, 7)
    assert not long.words[..., 4:].any()
    torch.testing.assert_close(long.words[..., :4], short.words)
    torch.testing.assert_close(long.block, short.block)


def test_word_product_pixel_by_pixel():
    torch.manual_seed(0)
    module = WordProduct(3, 5, preset("tiny"))
    visual, text = torch.randn(1, 3, 2, 2), features(5, length=4, valid=2)
    parts = module(visual, text)
    words = [module.word.weight[:, :, 0] @ text.words[0, :, i] for i in range(2)]
    for row, column in product(range(2), range(2)):
        pixel = visual[0, :, row, column]
        torch.testing.assert_close(parts.local[0, :, row, column], (words[0] + words[1]) / 2 * pixel)
        torch.testing.assert_close(parts.text[0, :, row, column], module.sentence(text.sentence)[0])
    assert torch.equal(parts.image, visual)


def test_encoder_layer_equals_pytorchs():
    torch.manual_seed(0)
    ours = EncoderLayer(12, heads=3)
    theirs = nn.TransformerEncoderLayer(12, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True)
    names = {
        "qkv.": "self_attn.in_proj_", "proj.": "self_attn.out_proj.", "norm1.": "norm1.", "norm2.": "norm2.",
        "ffn.0.": "linear1.", "ffn.2.": "linear2.",
    }  # fmt: skip
    state, kinds = ours.state_dict(), ("weight", "bias")
    theirs.load_state_dict({f"{b}{kind}": state[f"{a}{kind}"] for a, b in names.items() for kind in kinds})
    tokens, attended = torch.randn(2, 7, 12), torch.arange(7)[None] < torch.tensor([[7], [4]])
    torch.testing.assert_close(ours(tokens, attended), theirs(tokens, src_key_padding_mask=~attended))


def test_pixels_attend_to_one_another():
    torch.manual_seed(0)
    module = JointTransformer(6, 5, preset("tiny"))
    visual, text = torch.randn(1, 6, 4, 3), features(5, length=4, valid=4)
    moved = visual.clone()
    moved[..., 0, 0] += 1
    change = (module(moved, text).image - module(visual, text).image).abs().sum(1)
    assert (change > 1e-7).all()


def test_conv_decoder_uses_every_level_and_no_words():
    config = preset("tiny")
    torch.manual_seed(0)
    decoder = ConvDecoder(config).eval()
    fused = [torch.randn(1, c, 24 >> i, 24 >> i) for i, c in enumerate(config.vmamba_dims)]
    words, valid = [torch.randn(1, c, 5) for c in config.word_dims], torch.ones(1, 5, dtype=torch.bool)
    with torch.inference_mode():
        logits = decoder(fused, words, valid)
        assert (logits.shape, logits.dtype) == ((1, 96, 96), torch.float32)
        assert torch.equal(decoder(fused, [w + 1 for w in words], valid), logits)
        for level in range(4):
            moved = [x + 1 if i == level else x for i, x in enumerate(fused)]
            assert not torch.equal(decoder(moved, words, valid), logits), level


def check_export(fields, path):
    """Export; `export_onnx` compares the file with PyTorch."""
    from tfanet_export import export_onnx

    report = export_onnx(build(**fields).eval(), path, pairs=2)
    assert report.parity.pairs == 2
    used = {"tfanet::LinearCrossAttention"} if fields["alignment"] == "mlam" else set()
    assert used == {name for name in report.nodes if name == "tfanet::LinearCrossAttention"}


def test_export_of_every_part_that_the_full_model_lacks(tmp_path):
    check_export({"alignment": "transformer", "fusion": "conv", "decoder": "conv"}, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("fields", COMBINATIONS)
def test_export(fields, tmp_path):
    check_export(fields, tmp_path / "model.onnx")
