"""The model: sizes, shapes, and which inputs change its output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tfanet
from tfanet import vmamba
from tfanet.config import preset
from tfanet.data.preprocess import tokenize
from tfanet.errors import UserError
from tfanet.mlam import MLAM
from tfanet.ops.selective_scan import selective_scan_loop
from tfanet.text import TextEncoder, tower_config
from tfanet.training.schedule import parameter_groups
from tfanet.wfdm import WFDM

LENGTH = 17


def inputs_for(config, expressions):
    rng = torch.Generator().manual_seed(0)
    size = config.image_size
    image = torch.randint(0, 256, (len(expressions), size, size, 3), generator=rng, dtype=torch.uint8)
    return image, torch.from_numpy(tokenize(expressions, config.token_length))


def test_tiny_has_at_most_five_million_parameters(random_model):
    assert sum(parameter.numel() for parameter in random_model.parameters()) <= 5_000_000


@pytest.mark.parametrize(("name", "size"), [("tiny", 96), ("base", 480)])
def test_presets_build_and_give_logits_of_the_image_size(name, size):
    with torch.device("meta"):
        model = tfanet.build_model(name).eval()
        image = torch.zeros(2, size, size, 3, dtype=torch.uint8)
        logits = model(image, torch.zeros(2, LENGTH, dtype=torch.int64))
    assert logits.shape == (2, size, size)
    assert logits.dtype == torch.float32


def test_base_has_the_papers_number_of_parameters():
    """Table 4 (f): 268.46 M parameters."""
    with torch.device("meta"):
        model = tfanet.build_model("base")
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(268.46e6, rel=0.03)


@pytest.mark.parametrize(
    ("name", "counts"),
    [("tiny", {"backbone": (40, 70), "text": (8, 20), "rest": (174, 104)}),
     ("base", {"backbone": (152, 246), "text": (48, 100), "rest": (214, 160)})],
)  # fmt: skip
def test_modules_exclude_their_parameters_from_weight_decay(name, counts):
    """Parameters with and without decay by part; those that are excluded although they are no vectors."""
    with torch.device("meta"):
        model = tfanet.build_model(name)
    groups = parameter_groups(model, 0.01, {"backbone": 1.0, "text": 1.0, "rest": 1.0})
    numbers = {(group["part"], group["weight_decay"] > 0): len(group["params"]) for group in groups}
    for part, (decayed, excluded) in counts.items():
        assert (numbers[part, True], numbers[part, False]) == (decayed, excluded)
    without = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    matrices = {n for n, p in model.named_parameters() if id(p) in without and p.ndim > 1}
    scans = [n for n, module in model.named_modules() if isinstance(module, vmamba.SS2D)]
    expected = {f"{scan}.{name}" for scan in scans for name in ("A_logs", "dt_projs_bias")}
    expected |= {f"plus.{i}.mlam.gamma_{kind}" for i in range(4) for kind in ("vl", "lv")}
    expected |= {"text.tower.token_embedding.weight", "text.tower.positional_embedding"}
    assert matrices == expected


def test_base_text_tower_is_clips_vit_l_14():
    tower = tower_config(preset("base").text_tower)
    assert (tower["width"], tower["heads"], tower["layers"], tower["context_length"]) == (768, 12, 12, 77)


def test_stage_shapes(random_model):
    with torch.inference_mode():
        outputs = random_model.vmamba(torch.zeros(1, 3, 96, 96))
    assert [tuple(x.shape[1:]) for x in outputs] == [(24, 24, 24), (48, 12, 12), (96, 6, 6), (128, 3, 3)]


def test_tokens_after_eot_do_not_change_the_logits(random_model):
    image, tokens = inputs_for(random_model.config, ["the small red circle", "a star"])
    changed = tokens.clone()
    for row in changed:
        end = int(row.argmax())
        row[end + 1 :] = torch.randint(1, 40000, (LENGTH - end - 1,))
    with torch.inference_mode():
        torch.testing.assert_close(random_model(image, changed), random_model(image, tokens), rtol=0, atol=0)


def test_token_zero_before_eot_is_a_word():
    tokens = torch.tensor([[49406, 0, 320, 49407, 0, 0]])
    features = TextEncoder("tiny")(tokens)
    assert features.valid.tolist() == [[True, True, True, True, False, False]]
    assert (features.words[0, :, 1] != 0).any()
    assert (features.words[0, :, 4:] == 0).all()


def test_sentence_feature_is_the_feature_at_eot():
    tokens = torch.tensor([[49406, 320, 736, 49407, 0]])
    features = TextEncoder("tiny")(tokens)
    torch.testing.assert_close(features.sentence[0], features.words[0, :, 3])


def test_the_expression_changes_the_logits(random_model):
    image, tokens = inputs_for(random_model.config, ["the small red circle"])
    _, other = inputs_for(random_model.config, ["the large blue star"])
    with torch.inference_mode():
        assert not torch.allclose(random_model(image, tokens), random_model(image, other), atol=1e-6)


def test_logits_do_not_depend_on_the_batch(random_model):
    image, tokens = inputs_for(random_model.config, ["the small red circle", "a star", "top left thing"])
    with torch.inference_mode():
        together = random_model(image, tokens)
        alone = torch.cat([random_model(image[i : i + 1], tokens[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("directions", "height"), [(4, 5), (2, 1)])
def test_ss2d_equals_ss2d_with_the_reference_loop(monkeypatch, directions, height):
    torch.manual_seed(0)
    block = vmamba.SS2D(6, 8, inputs=9, state=2, directions=directions)
    x = torch.randn(2, 9, height, 7)
    fast = block(x)
    monkeypatch.setattr(vmamba, "selective_scan", selective_scan_loop)
    assert fast.shape == (2, 6, height, 7)
    torch.testing.assert_close(block(x), fast, rtol=1e-5, atol=1e-5)


def test_vmamba_parameter_names_are_the_official_ones(random_model):
    names = {
        name
        for name, _ in random_model.vmamba.named_parameters()
        if ".blocks.0." in name or "layers" not in name
    }
    block = {
        "norm.weight", "norm.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias",
        "mlp.fc2.weight", "mlp.fc2.bias", "op.A_logs", "op.Ds", "op.dt_projs_bias", "op.out_norm.weight",
        "op.out_norm.bias", "op.in_proj.weight", "op.conv2d.weight", "op.x_proj.weight", "op.dt_projs.weight",
        "op.out_proj.weight",
    }  # fmt: skip
    expected = {f"layers.{i}.blocks.0.{name}" for i in range(4) for name in block}
    expected |= {f"patch_embed.{i}.{kind}" for i in (0, 2, 5, 7) for kind in ("weight", "bias")}
    assert names == expected
    assert {f"layers.0.downsample.{i}.weight" for i in (1, 3)} <= set(random_model.vmamba.state_dict())


def test_mlam_ignores_padded_words():
    torch.manual_seed(0)
    mlam = MLAM(visual_dim=6, text_dim=5, dim=8, heads=2)
    visual, words = torch.randn(1, 6, 4, 3), torch.randn(1, 5, 7)
    valid = torch.tensor([[True] * 4 + [False] * 3])
    f_vl, f_lv = mlam(visual, words * valid[:, None], valid)
    assert f_vl.shape == (1, 8, 7)
    assert f_lv.shape == (1, 8, 4, 3)
    assert (f_vl[..., 4:] == 0).all()
    short_vl, short_lv = mlam(visual, words[..., :4], valid[:, :4])
    torch.testing.assert_close(f_vl[..., :4], short_vl)
    torch.testing.assert_close(f_lv, short_lv)


def test_alpha_weights_coarse_against_fine_masks():
    """Equation 26 with alpha = 1 keeps the coarsest level alone; with alpha = 0 the finest alone."""
    config = preset("tiny")
    torch.manual_seed(0)
    decoder = WFDM(config).eval()
    fused = [torch.randn(1, c, 24 >> i, 24 >> i) for i, c in enumerate(config.vmamba_dims)]
    words = [torch.randn(1, config.mlam_dim, 5) for _ in fused]
    valid = torch.ones(1, 5, dtype=torch.bool)

    def depends_on(level):
        moved = [x + (torch.randn_like(x) if i == level else 0) for i, x in enumerate(fused)]
        return not torch.equal(decoder(moved, words, valid), decoder(fused, words, valid))

    with torch.inference_mode():
        decoder.alpha.fill_(100.0)
        assert [depends_on(level) for level in range(4)] == [False, False, False, True]
        decoder.alpha.fill_(-100.0)
        assert [depends_on(level) for level in range(4)] == [True, False, False, False]


@pytest.fixture
def decoder_inputs():
    """A seeded WFDM of preset `tiny`, its four stages' features, words and valid positions."""
    config = preset("tiny")
    torch.manual_seed(0)
    decoder = WFDM(config).eval()
    nn.init.normal_(decoder.alpha)
    fused = [torch.randn(2, c, 24 >> i, 24 >> i) for i, c in enumerate(config.vmamba_dims)]
    words = [torch.randn(2, width, 5) for width in config.word_dims]
    return decoder, (fused, words, torch.arange(5) < torch.tensor([[5], [3]]))


def test_strata_are_equations_25_and_26(decoder_inputs):
    decoder, (fused, words, valid) = decoder_inputs
    with torch.inference_mode():
        masks = decoder.strata(fused, words, valid)
        assert [tuple(mask.shape) for mask in masks] == [(2, 32, 3 << j, 3 << j) for j in range(4)]
        levels = []
        for i in (3, 2, 1, 0):
            delta = decoder.delta[i](words[i])
            kernel = torch.stack([delta[0].mean(1), delta[1, :, :3].mean(1)])[:, :, None, None]
            levels.append(kernel * decoder.lateral[i](fused[i]))
        torch.testing.assert_close(masks[0], levels[0])
        for j in range(3):
            alpha = decoder.alpha[j].sigmoid()
            up = nn.functional.interpolate(masks[j], scale_factor=2, mode="bilinear")
            torch.testing.assert_close(
                masks[j + 1], decoder.merge[j](alpha * up + (1 - alpha) * levels[j + 1])
            )


def test_score_map_is_foreground_minus_background(decoder_inputs):
    decoder, inputs = decoder_inputs
    with torch.inference_mode():
        for mask in decoder.strata(*inputs):
            background, foreground = decoder.score(mask)[0]
            scores = decoder.score_map(mask)
            assert scores.shape == (2, 1, *mask.shape[2:])
            torch.testing.assert_close(scores[0, 0], foreground - background)
        assert decoder.half().score_map(mask.half()).dtype == torch.float32


def test_normalisation_uses_imagenet_mean_and_std(random_model):
    image = torch.tensor([[[[124, 116, 104]]]], dtype=torch.uint8)
    x = random_model.normalise(image).flatten().numpy()
    np.testing.assert_allclose(
        x, (np.array([124, 116, 104]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], 1e-4
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 100}, "multiple of 32"),
        ({"token_length": 78}, "token_length"),
        ({"mlam_heads": 5}, "not divisible"),
        ({"colour": "red"}, "unknown config field"),
        ({"text_tower": "ViT-Z-99"}, "unknown text tower"),
        ({"text_tower": "ViT-B-16-SigLIP"}, "'ViT-B-16-SigLIP' is unsupported"),
        ({"image_size": "96"}, "wrong type: image_size"),
        ({"mlam_heads": 2.0}, "wrong type: mlam_heads"),
        ({"vmamba_dims": (24, 48, 96)}, "wrong type: vmamba_dims"),
        ({"drop_path": 1.5}, "drop_path must be from 0 to 0.95"),
        ({"ssm_ratio": float("nan")}, "ssm_ratio must be"),
        ({"cfsm_blocks": -1}, "cfsm_blocks must be"),
        ({"alignment": "cross"}, "alignment must be one of none, transformer, mlam, not 'cross'"),
        ({"fusion": "mlam"}, "fusion must be one of conv, cfsm, not 'mlam'"),
        ({"decoder": ""}, "decoder must be one of conv, wfdm, not ''"),
        ({"decoder": None}, "wrong type: decoder"),
        ({"transformer_heads": 3}, "transformer_dim 32 is not divisible by transformer_heads 3"),
        ({"conv_decoder_dim": 0}, "conv_decoder_dim must be from 1"),
    ],
)
def test_invalid_configs_are_rejected(fields, message):
    with pytest.raises(UserError, match=message):
        tfanet.build_model("tiny", **fields)


def test_unknown_preset():
    with pytest.raises(UserError, match="known: tiny, base"):
        tfanet.build_model("huge")
