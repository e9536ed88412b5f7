"""CLIP text encoder (Radford et al., 2021) built by open_clip: word features F_W and sentence feature F_T."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tfanet.errors import UserError

TOWERS: dict[str, dict[str, Any]] = {
    "tiny": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
"""Towers of the project's own, in the form of open_clip's `text_cfg`; open_clip's CLIP names work too."""


class TextFeatures(NamedTuple):
    """What the rest of the model needs of a sentence."""

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

    config = {"text_cfg": TOWERS[name]} if name in TOWERS else open_clip.get_model_config(name)
    if config is None or "width" not in config.get("text_cfg", {}):
        raise UserError(
            f"unknown text tower {name!r}: use an open_clip CLIP name such as ViT-L-14, or 'tiny'"
        )
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
            raise UserError(f"text tower {name!r} is not of CLIP's own kind: {error}") from error
        self.width: int = config["width"]

    def load_pretrained(self, source: str) -> None:
        """Load this tower's weights from a CLIP: a checkpoint file, or one of open_clip's pretrained tags.

        A tag is downloaded by open_clip on first use. Raises `UserError` when the tower is the project's
        own, the tag is unknown or cannot be had, or the file is no checkpoint of this CLIP.
        """
        if self.name in TOWERS:
            raise UserError(
                f"the text tower {self.name!r} has no CLIP weights; use a preset with a CLIP tower"
            )
        clip = _pretrained_clip(self.name, source)
        text = getattr(clip, "text", clip).state_dict()
        self.tower.load_state_dict({name: text[name] for name in self.tower.state_dict()})

    def forward(self, tokens: Tensor) -> TextFeatures:
        length = tokens.shape[1]
        tower = self.tower
        # EOT has the largest id. Padding is what follows it: id 0 alone will not do, for it is also "!".
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


def _pretrained_clip(name: str, source: str) -> nn.Module:
    """The whole CLIP with its weights; only open_clip knows all the forms that its checkpoints have."""
    import open_clip

    is_file, tags = Path(source).is_file(), open_clip.list_pretrained_tags_by_model(name)
    if not is_file and source not in tags:
        known = ", ".join(tags) or "none"
        raise UserError(f"{source!r} is neither a file nor a pretrained tag of {name} (its tags: {known})")
    if not is_file:
        quick = bool(open_clip.get_pretrained_cfg(name, source).get("quick_gelu"))
        if quick != bool((open_clip.get_model_config(name) or {}).get("quick_gelu")):
            other = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
            raise UserError(
                f"{source} was trained with another activation than {name}; use text_tower {other}"
            )
    try:
        return open_clip.create_model(name, pretrained=source)
    except Exception as error:  # the network, the hub and every file format raise their own kinds
        what = " ".join(str(error).split())[:200]
        if is_file:
            raise UserError(f"{source} is damaged or no checkpoint of {name}: {what}") from error
        raise UserError(f"cannot download {source} for {name}: {what}; give a checkpoint file") from error
