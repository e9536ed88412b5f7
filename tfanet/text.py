"""CLIP text encoder (Radford et al., 2021) built by open_clip: word features F_W and sentence feature F_T."""

from __future__ import annotations

import difflib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tfanet.errors import UserError
from tfanet.files import require_file

TOWERS: dict[str, dict[str, Any]] = {
    "tiny": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
"""This project's towers, in the form of open_clip's `text_cfg`. open_clip's CLIP names work as well."""

HUB_SECONDS = 10
"""Timeout of the first request to the hub."""


class TextFeatures(NamedTuple):
    """The features of an expression."""

    words: Tensor
    """F_W [B, W, L]: last-layer features of the tokens, zero at padded positions."""
    sentence: Tensor
    """F_T [B, W]: the feature at EOT, before CLIP's projection."""
    valid: Tensor
    """[B, L] bool: True from SOT to EOT."""


def tower_config(name: str) -> dict[str, Any]:
    """The arguments of open_clip's `TextTransformer` for a tower; `UserError` for an unknown name.

    A name that ends in -quickgelu has the activation that OpenAI's weights were trained with.
    """
    import open_clip
    from open_clip.transformer import QuickGELU

    known = open_clip.list_models()
    if name not in TOWERS and name not in known:
        near = " or ".join(difflib.get_close_matches(name, known)) or "a CLIP name such as ViT-L-14"
        raise UserError(
            f"unknown text tower {name!r}: use {near}, or 'tiny'; this lists all: "
            "python -c 'import open_clip; print(*open_clip.list_models())'"
        )
    config = {"text_cfg": TOWERS[name]} if name in TOWERS else cast(dict, open_clip.get_model_config(name))
    if "width" not in config["text_cfg"]:
        raise _not_clip(name, "it is a model of the Hugging Face hub")
    return config["text_cfg"] | {"act_layer": QuickGELU if config.get("quick_gelu") else nn.GELU}


class TextEncoder(nn.Module):
    """tokens int64 [B, L], L <= 77 -> `TextFeatures`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        config = tower_config(name)
        self.name = name
        try:
            self.tower = TextTransformer(**config, output_dim=None)
        except TypeError as error:
            raise _not_clip(name, str(error)) from error
        if (self.tower.context_length, self.tower.vocab_size) != (77, 49408):
            raise _not_clip(name, "it does not read 77 tokens of CLIP's vocabulary")
        if self.tower.attn_mask is None or self.tower.cls_emb is not None:
            raise _not_clip(name, "its attention is not causal")
        self.width: int = config["width"]

    def no_weight_decay(self) -> set[str]:
        """The embeddings: most tokens occur in no batch, and decay would only shrink theirs."""
        return {"tower.token_embedding.weight", "tower.positional_embedding"}

    def load_pretrained(self, source: str) -> None:
        """Load this tower's weights from a CLIP: a checkpoint file, or one of open_clip's pretrained tags.

        A file is OpenAI's archive (.pt), or a state dict of open_clip (.pt, .bin, .safetensors), with or
        without the image part. A tag is downloaded by open_clip on first use. Strict: every parameter is
        loaded, and no text layer is left over. Raises `UserError` if this tower has no CLIP weights, the tag
        is unknown or cannot be downloaded, or the file is not a checkpoint of this CLIP.
        """
        if self.name in TOWERS:
            raise UserError(
                f"the text tower {self.name!r} has no CLIP weights; use a preset with a CLIP tower"
            )
        path = Path(source) if Path(source).is_file() else _download(self.name, source)
        given = _text_part(_read_clip(path, self.name))
        expected = self.tower.state_dict()
        missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
        if missing or unknown:
            raise UserError(
                f"{path} is not a checkpoint of {self.name}: {len(missing)} parameters are missing "
                f"{missing[:2]}, {len(unknown)} unknown {unknown[:2]}"
            )
        for name, tensor in given.items():
            if tensor.shape != expected[name].shape:
                raise UserError(
                    f"{path} is a checkpoint of another CLIP than {self.name}: {name} is {[*tensor.shape]}, "
                    f"this tower has {[*expected[name].shape]}"
                )
        self.tower.load_state_dict(given)

    def forward(self, tokens: Tensor) -> TextFeatures:
        length = tokens.shape[1]
        tower = self.tower
        # EOT has the largest id. Padding is what follows EOT; id 0 alone does not mark it, for "!" has id 0.
        end = tokens.argmax(dim=1)
        valid = torch.arange(length, device=tokens.device)[None] <= end[:, None]
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        causal = cast(Tensor, tower.attn_mask)[:length, :length]
        for block in tower.transformer.resblocks:
            x = block(x, attn_mask=causal)
        x = tower.ln_final(x)  # [B, L, W]
        sentence = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        words = x.mT * valid[:, None].to(x.dtype)
        return TextFeatures(words, sentence, valid)


def _not_clip(name: str, reason: str) -> UserError:
    return UserError(
        f"the text tower {name!r} is unsupported ({reason}); use a CLIP tower such as ViT-L-14 or ViT-B-16"
    )


def _require_activation(name: str, source: str, quick: bool) -> None:
    """Raise `UserError` if the weights in `source` were trained with another activation than `name`'s."""
    if quick == (tower_config(name)["act_layer"] is not nn.GELU):
        return
    other = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
    raise UserError(f"{source} was trained with another activation than {name}; use text_tower {other}")


def _download(name: str, tag: str) -> Path:
    """The checkpoint file of a pretrained tag, from the hub's cache or downloaded into it."""
    import huggingface_hub
    import open_clip
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        known = ", ".join(tags) or "none"
        raise UserError(f"{tag!r} is neither a file nor a pretrained tag of {name} (its tags: {known})")
    config = open_clip.get_pretrained_cfg(name, tag)
    _require_activation(name, tag, bool(config.get("quick_gelu")))
    place = PurePosixPath(config["hf_hub"])
    if config["hf_hub"].endswith("/"):
        repository, files = place, (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    else:
        repository, files = place.parent, (place.with_suffix(".safetensors").name, place.name)
    for file in files:
        cached = huggingface_hub.try_to_load_from_cache(str(repository), file)
        if isinstance(cached, str):
            return Path(cached)
    hub = huggingface_hub.constants.ENDPOINT
    try:
        # Without this request a machine without internet waits for dozens of the hub's retries.
        huggingface_hub.get_session().head(hub, timeout=HUB_SECONDS)
        return Path(open_clip.download_pretrained(config))
    except Exception as error:  # network and hub raise many types
        raise UserError(
            f"cannot download {tag} for {name} ({_one_line(error)}); fetch {hub}/{repository} ({files[0]}) "
            "on a machine with internet and give that file"
        ) from error


def _read_clip(path: Path, name: str) -> Mapping[str, Tensor]:
    """The state dict of a checkpoint file. OpenAI's archives are TorchScript."""
    from open_clip.factory import load_state_dict

    require_file(path, "CLIP checkpoint")
    try:
        if _is_torchscript(path):
            _require_activation(name, str(path), quick=True)
            with warnings.catch_warnings(action="ignore"):  # deprecated, but the only reader
                state = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            state = load_state_dict(str(path))
    except UserError:
        raise
    except Exception as error:  # every file format raises other types
        raise UserError(f"{path} is damaged or not a CLIP checkpoint: {_one_line(error)}") from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{path} has no CLIP state dict")
    return state


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _text_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower's parameters in the state dict of a CLIP, in either of open_clip's two layouts."""
    if any(name.startswith("text.token_embedding.") for name in state):
        state = {n.removeprefix("text."): tensor for n, tensor in state.items() if n.startswith("text.")}
    text = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.")
    return {name: tensor for name, tensor in state.items() if name.startswith(text)}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
