"""CLIP text encoder (Radford et al., 2021) built by open_clip: word features F_W and sentence feature F_T."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tfanet.errors import UserError

TOWERS: dict[str, dict[str, Any]] = {
    "tiny": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
"""Towers of the project's own, in the form of open_clip's `text_cfg`; any open_clip model name works too."""


class TextFeatures(NamedTuple):
    """What the rest of the model needs of a sentence."""

    words: Tensor
    """F_W [B, W, L]: last-layer features of the tokens, zero at padded positions."""
    sentence: Tensor
    """F_T [B, W]: the feature at EOT, before CLIP's projection."""
    valid: Tensor
    """[B, L] bool: True from SOT to EOT."""


def tower_config(name: str) -> dict[str, Any]:
    """open_clip's `text_cfg` of a tower; `UserError` for an unknown name."""
    if name in TOWERS:
        return TOWERS[name]
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None or "width" not in config.get("text_cfg", {}):
        raise UserError(
            f"unknown text tower {name!r}: use an open_clip CLIP name such as ViT-L-14, or 'tiny'"
        )
    return config["text_cfg"]


class TextEncoder(nn.Module):
    """tokens int64 [B, L], L <= 77 -> `TextFeatures`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        config = tower_config(name)
        self.tower = TextTransformer(**config, output_dim=None)
        self.width: int = config["width"]

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
