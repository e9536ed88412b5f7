"""Maps inside a model for one image and one expression.

At stage i, with j = 5 - i:

- F_LV, equation 15 (Knowledge Plus Stage): its norm over the channels.
- F_f, equation 16 (the same stage): the affinity of each word to each pixel, signed. The convolution
  that reads it may use either sign for the object.
- F_F, equation 22 (Knowledge Fusion Stage): its norm over the channels.
- M_j, equations 25 and 26 (Knowledge Intensification Stage): the probability of the object, computed by the
  decoder's last layers from M_j alone. These layers are trained on M_4, and M_4 gives the model's prediction.
  The maps of M_1 to M_3 show where the prediction comes from; the model does not output them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tfanet.data.preprocess import resize_image, tokenize
from tfanet.layers import resize
from tfanet.mlam import KnowledgePlus
from tfanet.wfdm import WFDM

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer
    from PIL import Image

    from tfanet.model import TFANet


@dataclass(frozen=True)
class StageMaps:
    """The float32 maps of one stage; None where the model lacks the part."""

    stride: int
    """Input pixels per element of `fused`, along each axis."""
    fused: np.ndarray
    """|F_F| [H_i, W_i], at least 0."""
    aligned: np.ndarray | None
    """|F_LV| [H_i, W_i], at least 0."""
    words: np.ndarray | None
    """F_f [n, H_i, W_i]; a word's map is the mean over its tokens."""
    mask: np.ndarray | None
    """The probability read from M_j [2 H_1, 2 W_1], 0..1."""


@dataclass(frozen=True)
class Maps:
    """The maps of the four stages, finest first, and the prediction."""

    stages: tuple[StageMaps, ...]
    words: tuple[str, ...]
    """The n words of the expression that contain a letter or digit, without SOT and EOT."""
    logits: np.ndarray
    """float32 [S, S]; the predicted mask is `logits > 0`."""

    @property
    def absent(self) -> str:
        """The maps that this model does not have, and why; empty for the full model."""
        parts = []
        if self.stages[0].aligned is None:
            parts.append("F_LV and the words (it has no MLAM)")
        if self.stages[0].mask is None:
            parts.append("M_1 to M_4 (it has no WFDM)")
        return " and ".join(parts)


def trace(model: TFANet, image: Image.Image, expression: str) -> Maps:
    """The maps of `model`, which must be in evaluation mode, for one image and expression.

    Raises `UserError` if the expression is empty or longer than the model's context.
    """
    config, device = model.config, model.image_mean.device
    tokens = tokenize([expression], config.token_length, strict=True)
    pixels = resize_image(image, config.image_size)
    hooked: dict[str, nn.Module] = {"decoder": model.decoder}
    for i, plus in enumerate(model.plus):
        if isinstance(plus, KnowledgePlus):
            hooked |= {f"aligned {i}": plus.expand_image, f"affinity {i}": plus.local}

    with torch.inference_mode(), _hook_inputs(hooked) as inputs:
        logits = model(torch.tensor(pixels[None], device=device), torch.tensor(tokens, device=device))
        fused, words, valid = inputs["decoder"]
        masks: list[Tensor] = []
        if isinstance(model.decoder, WFDM):
            masks = _read_masks(model.decoder, model.decoder.strata(fused, words, valid))

    words_of_expression, positions = split_words(tokens[0])
    stages = []
    for i, feature in enumerate(fused):
        (aligned,), (affinity,) = (inputs.get(f"{name} {i}", (None,)) for name in ("aligned", "affinity"))
        stages.append(
            StageMaps(
                stride=config.image_size // feature.shape[2],
                fused=_array(feature[0].norm(dim=0)),
                aligned=None if aligned is None else _array(aligned[0].norm(dim=0)),
                words=None if affinity is None else _by_word(_array(affinity[0]), positions),
                mask=_array(masks[-1 - i][0, 0]) if masks else None,
            )
        )
    return Maps(tuple(stages), words_of_expression, _array(logits[0]))


@contextmanager
def _hook_inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Any, ...]]]:
    """The positional arguments of each module's last call inside the `with` block, by name."""
    inputs: dict[str, tuple[Any, ...]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs[name] = args

        return hook

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in modules.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _read_masks(decoder: WFDM, strata: list[Tensor]) -> list[Tensor]:
    """M_1..M_4 each through the layers after M_4 in `WFDM.forward`: probabilities [1, 1, 2 H_1, 2 W_1]."""
    height, width = strata[-1].shape[2:]
    masks = []
    for stratum in strata:
        mask = decoder.refine[0](resize(stratum, (height, width)))
        mask = decoder.refine[1](resize(mask, (2 * height, 2 * width)))
        masks.append(decoder.score_map(mask).sigmoid())
    return masks


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _by_word(affinity: np.ndarray, positions: list[list[int]]) -> np.ndarray:
    """[L, H, W] by token -> [n, H, W] by word."""
    maps = [affinity[tokens].mean(axis=0) for tokens in positions]
    return np.stack(maps) if maps else affinity[:0]


def split_words(tokens: np.ndarray) -> tuple[tuple[str, ...], list[list[int]]]:
    """The words of one row of `tokenize`, int64 [L], and the positions of each word's tokens in the row.

    Punctuation (neither letter nor digit) is left out.
    """
    tokenizer = _tokenizer()
    end = int(tokens.argmax())  # EOT has the largest id
    words, positions, start = [], [], 1
    for position in range(1, end):
        if tokenizer.decoder[int(tokens[position])].endswith("</w>"):
            word = tokenizer.decode([int(token) for token in tokens[start : position + 1]]).strip()
            if any(character.isalnum() for character in word):
                words.append(word)
                positions.append(list(range(start, position + 1)))
            start = position + 1
    return tuple(words), positions


@lru_cache(maxsize=1)
def _tokenizer() -> SimpleTokenizer:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
