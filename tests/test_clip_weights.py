"""CLIP text towers: features equal open_clip's, every form of weights loads, errors are one line."""

from __future__ import annotations

import copy
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tfanet.data.preprocess import tokenize
from tfanet.errors import UserError
from tfanet.text import TextEncoder

pytestmark = pytest.mark.integration

EXPRESSIONS = [
    "left",
    "a photo of a small red circle",
    "hey! the man in the blue-striped shirt",
    "the second tallest of the three giraffes that stand behind the wooden fence "
    "on the far right side of a big green field",
]
SMALL = "ViT-S-32"
NO_IMAGES = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1}
"""A tiny image part, for tests of the text part."""


def build_clip(name: str) -> Any:
    """open_clip's CLIP of this name with random weights, biases and norms included."""
    torch.manual_seed(0)
    clip: Any = open_clip.create_model(name, pretrained=None, vision_cfg=NO_IMAGES).eval()
    with torch.no_grad():
        for parameter in clip.transformer.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return clip


def on_meta(name: str) -> TextEncoder:
    """An encoder on the meta device, for failures before any weight is copied."""
    with torch.device("meta"):
        return TextEncoder(name)


def openai_archive(tower: nn.Module) -> Any:
    """The tower in the form of OpenAI's files: a TorchScript archive in FP16."""
    tokens = torch.zeros(1, 77, dtype=torch.long)
    traced: Any = torch.jit.trace(tower, tokens, check_trace=False)
    return traced.half()


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-16-quickgelu", "ViT-L-14"])
def test_features_equal_open_clips(name):
    """Words equal the output of open_clip's `ln_final`, the sentence feature its row at EOT.

    The largest difference was 1.3e-6 (ViT-B-16), 1.4e-6 (-quickgelu) and 1.7e-6 (ViT-L-14), with values
    up to 4.0.
    """
    clip = build_clip(name)
    encoder = TextEncoder(name).eval()
    weights = clip.state_dict()
    encoder.tower.load_state_dict({key: weights[key] for key in encoder.tower.state_dict()})
    outputs: list[Tensor] = []
    clip.ln_final.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    for length in (17, 22):
        tokens = torch.from_numpy(tokenize(EXPRESSIONS, length))
        with torch.inference_mode():
            embedding = clip.encode_text(nn.functional.pad(tokens, (0, 77 - length)))
            words, sentence, valid = encoder(tokens)
        expected = outputs.pop()
        assert valid.sum(1).tolist() == [3, 9, 12, length]
        assert torch.equal(valid.sum(1) - 1, tokens.argmax(1))
        torch.testing.assert_close(words.mT[valid], expected[:, :length][valid], rtol=0, atol=1e-5)
        assert (words.mT[~valid] == 0).all()
        at_end = expected[torch.arange(len(tokens)), tokens.argmax(1)]
        torch.testing.assert_close(sentence, at_end, rtol=0, atol=1e-5)
        torch.testing.assert_close(sentence @ clip.text_projection.detach(), embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [17, 22])
def test_tokens_equal_open_clips(length):
    """The length includes SOT and EOT, an expression that is too long ends with EOT, padding is id 0."""
    expected = open_clip.get_tokenizer("ViT-L-14", context_length=length)(EXPRESSIONS)
    tokens = torch.from_numpy(tokenize(EXPRESSIONS, length))
    assert torch.equal(tokens, expected)
    assert tokens[:, 0].eq(49406).all()
    assert tokens[-1, -1] == 49407
    assert tokens[0].tolist() == [49406, 1823, 49407] + [0] * (length - 3)


def test_embedding_of_padding_does_not_change_the_logits(random_model):
    """Padding is id 0; if no word has that id, its embedding has no effect."""
    torch.manual_seed(0)
    size = random_model.config.image_size
    image = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    tokens = torch.from_numpy(tokenize(["the small red circle", "a star"], random_model.config.token_length))
    changed = copy.deepcopy(random_model)
    embedding = changed.text.tower.token_embedding.weight
    with torch.inference_mode():
        expected = random_model(image, tokens)
        garbage = 1e3 * torch.randn_like(embedding[0])
        embedding[0] = garbage
        torch.testing.assert_close(changed(image, tokens), expected, rtol=0, atol=1e-6)
        embedding[tokens[0, 1]] = garbage
        assert not torch.allclose(changed(image, tokens), expected, rtol=0, atol=1e-6)


def test_quick_gelu_towers_have_another_activation():
    plain, quick = (
        {type(module).__name__ for module in on_meta(name).modules()} & {"GELU", "QuickGELU"}
        for name in ("ViT-B-16", "ViT-B-16-quickgelu")
    )
    assert (plain, quick) == ({"GELU"}, {"QuickGELU"})


@pytest.fixture(scope="module")
def clip():
    return build_clip(SMALL)


def text_of(clip):
    state = clip.state_dict()
    return {n: state[n] for n in on_meta(SMALL).tower.state_dict()}


FORMS = {
    "clip.pt": lambda clip, path: torch.save(clip.state_dict(), path),
    "text_alone.safetensors": lambda clip, path: save_file(text_of(clip), path),
    "custom_text.bin": lambda clip, path: torch.save(
        {f"text.{n}": t for n, t in text_of(clip).items()} | {"visual.proj": torch.ones(1)}, path
    ),
    "training.pt": lambda clip, path: torch.save(
        {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in clip.state_dict().items()}}, path
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_checkpoint_is_read(clip, tmp_path, form):
    FORMS[form](clip, tmp_path / form)
    encoder = TextEncoder(SMALL)
    encoder.load_pretrained(str(tmp_path / form))
    for name, tensor in text_of(clip).items():
        assert torch.equal(encoder.tower.state_dict()[name], tensor), name


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_openais_archive_is_read(tmp_path):
    """TorchScript in FP16, and only for a tower with the activation that OpenAI trained with."""
    torch.manual_seed(1)
    source = TextEncoder("ViT-B-32-quickgelu").tower
    expected = {name: tensor.half().float() for name, tensor in source.state_dict().items()}
    path = tmp_path / "ViT-B-32.pt"
    openai_archive(source).save(path)
    encoder = TextEncoder("ViT-B-32-quickgelu")
    encoder.load_pretrained(str(path))
    for name, tensor in encoder.tower.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    with pytest.raises(
        UserError, match=r"another activation than ViT-B-32; use text_tower ViT-B-32-quickgelu"
    ):
        on_meta("ViT-B-32").load_pretrained(str(path))


@pytest.fixture(scope="module")
def files(clip, tmp_path_factory):
    """File name -> path of files that are invalid for the tower that they are loaded into."""
    folder = tmp_path_factory.mktemp("files")
    state = text_of(clip)
    save_file(state, folder / "clip.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "clip.safetensors").read_bytes()[:1000])
    (folder / "garbage.pt").write_bytes(b"nothing of use")
    (folder / "empty.pt").touch()
    (folder / "folder").mkdir()
    torch.save([1, 2], folder / "list.pt")
    torch.save({"state_dict": {"epoch": 3}}, folder / "epoch.pt")
    save_file({"patch_embed.0.weight": torch.ones(1)}, folder / "vmamba.safetensors")
    save_file({n: t for n, t in state.items() if n != "ln_final.bias"}, folder / "half.safetensors")
    deeper = {"transformer.resblocks.12.ln_1.weight": torch.ones(384)}
    save_file(state | deeper, folder / "deeper.safetensors")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("tiny", "openai", "has no CLIP weights"),
        (SMALL, "nowhere.pt", "neither a file nor a pretrained tag of ViT-S-32"),
        (SMALL, "folder", "neither a file nor a pretrained tag"),
        (SMALL, "empty.pt", "is empty"),
        (SMALL, "garbage.pt", "damaged or not a CLIP checkpoint"),
        (SMALL, "cut.safetensors", "damaged or not a CLIP checkpoint"),
        (SMALL, "list.pt", "damaged or not a CLIP checkpoint"),
        (SMALL, "epoch.pt", "has no CLIP state dict"),
        (SMALL, "vmamba.safetensors", r"not a checkpoint of ViT-S-32: 148 parameters are missing"),
        (SMALL, "half.safetensors", r"1 parameters are missing \['ln_final.bias'\], 0 unknown"),
        (SMALL, "deeper.safetensors", r"0 parameters are missing \[\], 1 unknown \['transformer.resblocks"),
        ("ViT-B-32", "clip.safetensors", r"another CLIP than ViT-B-32: .* is \[384\], this .* \[512\]"),
        ("ViT-B-16", "openai", "another activation than ViT-B-16; use text_tower ViT-B-16-quickgelu"),
        ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", r"nor a pretrained tag of .*gelu \(its tags: "),
    ],
)  # fmt: skip
def test_invalid_checkpoints_give_one_line(files, name, source, message):
    with pytest.raises(UserError, match=message) as caught:
        on_meta(name).load_pretrained(files.get(source, source))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-L14", r"unknown text tower 'ViT-L14': use ViT-L-14 or .*open_clip.list_models\(\)"),
        ("bert", r"use a CLIP name such as ViT-L-14, or 'tiny'"),
        ("hf-hub:org/model", "unknown text tower 'hf-hub:org/model'"),
        ("local-dir:nowhere", "unknown text tower 'local-dir:nowhere'"),
        ("xlm-roberta-base-ViT-B-32", "is unsupported .*Hugging Face"),
        ("ViT-B-16-SigLIP", "is unsupported"),
        ("PE-Core-B-16", "is unsupported .*77 tokens"),
        ("coca_base", "is unsupported .*77 tokens"),
        ("coca_ViT-B-32", "is unsupported .*77 tokens"),
        ("MobileCLIP-S1", "is unsupported .*not causal"),
    ],
)
def test_unsupported_towers_give_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        on_meta(name)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub at a closed port of this machine, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_offline_fails_before_any_retry(hub, monkeypatch):
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: pytest.fail("tried to download"))
    message = (
        r"cannot download openai for ViT-L-14-quickgelu \(.*fetch .*/timm/vit_large_patch14_clip_224.openai "
    )
    with pytest.raises(
        UserError, match=message + r"\(open_clip_model.safetensors\) .* give that file"
    ) as caught:
        on_meta("ViT-L-14-quickgelu").load_pretrained("openai")
    assert "\n" not in str(caught.value)


def test_a_cached_file_needs_no_hub(hub):
    repository = hub / "models--timm--vit_large_patch14_clip_224.openai"
    file = repository / "snapshots" / "abc" / "open_clip_model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not weights, so that the message shows that it was opened")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    with pytest.raises(UserError, match=r"snapshots.abc.open_clip_model.safetensors is damaged"):
        on_meta("ViT-L-14-quickgelu").load_pretrained("openai")
