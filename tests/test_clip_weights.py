"""CLIP text weights through open_clip: the same features as open_clip's own, and one line for mistakes."""

from __future__ import annotations

import open_clip
import pytest
import torch

from tfanet.data.transforms import tokenize
from tfanet.errors import UserError
from tfanet.text import TextEncoder

NAME = "ViT-S-32"


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return open_clip.create_model(NAME, pretrained=None).eval()


@pytest.fixture(scope="module")
def checkpoint(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(clip.state_dict(), path)
    return path


def test_sentence_feature_is_clips(clip, checkpoint):
    """CLIP's text embedding is our F_T times its projection; 17 tokens give what 77 do."""
    encoder = TextEncoder(NAME).eval()
    encoder.load_pretrained(str(checkpoint))
    sentences = ["a photo of a small red circle", "left"]
    with torch.inference_mode():
        expected = clip.encode_text(torch.from_numpy(tokenize(sentences, 77)))
        features = encoder(torch.from_numpy(tokenize(sentences, 17)))
        embedding = features.sentence @ clip.text_projection
    torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)


def test_quick_gelu_is_another_tower():
    plain, quick = (
        TextEncoder(name).tower.transformer.resblocks[0].mlp[1] for name in ("ViT-B-16", "ViT-B-16-quickgelu")
    )
    assert type(plain).__name__ == "GELU"
    assert type(quick).__name__ == "QuickGELU"


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("tiny", "openai", "has no CLIP weights"),
        (NAME, "nowhere.pt", "neither a file nor a pretrained tag"),
        (NAME, "GARBAGE", "damaged or no checkpoint"),
        ("ViT-B-32", "CHECKPOINT", "damaged or no checkpoint of ViT-B-32"),
        ("ViT-B-16", "openai", "another activation than ViT-B-16; use text_tower ViT-B-16-quickgelu"),
    ],
)
def test_mistakes_are_one_line(checkpoint, tmp_path, name, source, message):
    (tmp_path / "garbage.pt").write_bytes(b"nothing of use")
    source = {"GARBAGE": str(tmp_path / "garbage.pt"), "CHECKPOINT": str(checkpoint)}.get(source, source)
    with pytest.raises(UserError, match=message) as caught:
        TextEncoder(name).load_pretrained(source)
    assert "\n" not in str(caught.value)


def test_offline_says_what_to_do(monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("the hub cannot be reached\nin any way")

    encoder = TextEncoder("ViT-B-16-quickgelu")
    monkeypatch.setattr(open_clip, "create_model", unreachable)
    with pytest.raises(UserError, match=r"cannot download openai .* in any way; give a checkpoint file"):
        encoder.load_pretrained("openai")
