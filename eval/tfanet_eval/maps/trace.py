"""What a model holds inside while it reads one picture and one sentence, as maps to look at.

At stage i, with j = 5 - i:

- F_LV, equation 15 (Knowledge Plus Stage): its norm over the channels.
- F_f, equation 16 (the same stage): the affinity of each word to each pixel, with its sign. The convolution
  that reads it may take either sign for the object.
- F_F, equation 22 (Knowledge Fusion Stage): its norm over the channels.
- M_j, equations 25 and 26 (Knowledge Intensification Stage): the probability of the object that the
  decoder's last layers read from M_j alone. They are trained on M_4, whose reading is the model's answer;
  what they read from M_1 to M_3 shows where the answer comes from, and is no mask that the model would give.
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
    """The float32 maps of one stage; None where the model has no such part."""

    stride: int
    """Pixels of the model's image along each side of one element of `fused`."""
    fused: np.ndarray
    """|F_F| [H_i, W_i], at least 0."""
    aligned: np.ndarray | None
    """|F_LV| [H_i, W_i], at least 0."""
    words: np.ndarray | None
    """F_f [n, H_i, W_i], for each word the mean over its pieces."""
    mask: np.ndarray | None
    """The reading of M_j [2 H_1, 2 W_1], 0..1."""


@dataclass(frozen=True)
class Maps:
    """The maps of the four stages, finest first, and the answer."""

    stages: tuple[StageMaps, ...]
    words: tuple[str, ...]
    """The n words of the sentence that have letters or digits, without SOT and EOT."""
    logits: np.ndarray
    """float32 [S, S]; the object is where they are above 0."""

    @property
    def absent(self) -> str:
        """The maps that this model cannot give, and why; empty for the full model."""
        parts = []
        if self.stages[0].aligned is None:
            parts.append("F_LV and the words (it has no MLAM)")
        if self.stages[0].mask is None:
            parts.append("M_1 to M_4 (it has no WFDM)")
        return " and ".join(parts)


def trace(model: TFANet, picture: Image.Image, sentence: str) -> Maps:
    """The maps of `model`, which is in evaluation mode, for one picture and sentence.

    Raises `UserError` when the sentence is empty or longer than the model's context.
    """
    config, device = model.config, model.image_mean.device
    tokens = tokenize([sentence], config.token_length, strict=True)
    image = resize_image(picture, config.image_size)
    watched: dict[str, nn.Module] = {"decoder": model.decoder}
    for i, plus in enumerate(model.plus):
        if isinstance(plus, KnowledgePlus):
            watched |= {f"aligned {i}": plus.expand_image, f"affinity {i}": plus.local}

    with torch.inference_mode(), _inputs_of(watched) as seen:
        logits = model(torch.tensor(image[None], device=device), torch.tensor(tokens, device=device))
        fused, words, valid = seen["decoder"]
        masks: list[Tensor] = []
        if isinstance(model.decoder, WFDM):
            masks = _readings(model.decoder, model.decoder.strata(fused, words, valid))

    labels, pieces = spell(tokens[0])
    stages = []
    for i, feature in enumerate(fused):
        (aligned,), (affinity,) = (seen.get(f"{name} {i}", (None,)) for name in ("aligned", "affinity"))
        stages.append(
            StageMaps(
                stride=config.image_size // feature.shape[2],
                fused=_array(feature[0].norm(dim=0)),
                aligned=None if aligned is None else _array(aligned[0].norm(dim=0)),
                words=None if affinity is None else _by_word(_array(affinity[0]), pieces),
                mask=_array(masks[-1 - i][0, 0]) if masks else None,
            )
        )
    return Maps(tuple(stages), labels, _array(logits[0]))


@contextmanager
def _inputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Any, ...]]]:
    """What each of `modules` is called with while the block runs, by name."""
    seen: dict[str, tuple[Any, ...]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen[name] = inputs

        return hook

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _readings(decoder: WFDM, strata: list[Tensor]) -> list[Tensor]:
    """M_1..M_4 through what follows M_4 in `WFDM.forward`, up to its scores: [1, 1, 2 H_1, 2 W_1] each."""
    height, width = strata[-1].shape[2:]
    readings = []
    for stratum in strata:
        mask = decoder.refine[0](resize(stratum, (height, width)))
        mask = decoder.refine[1](resize(mask, (2 * height, 2 * width)))
        readings.append(decoder.score_map(mask).sigmoid())
    return readings


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _by_word(affinity: np.ndarray, pieces: list[list[int]]) -> np.ndarray:
    """[L, H, W] by token -> [n, H, W] by word."""
    maps = [affinity[positions].mean(axis=0) for positions in pieces]
    return np.stack(maps) if maps else affinity[:0]


def spell(tokens: np.ndarray) -> tuple[tuple[str, ...], list[list[int]]]:
    """The words of one row of `tokenize`, int64 [L], and the positions of each word's pieces in it.

    What bears neither letter nor digit is no word.
    """
    tokenizer = _tokenizer()
    end = int(tokens.argmax())  # EOT has the largest id
    words, places, start = [], [], 1
    for place in range(1, end):
        if tokenizer.decoder[int(tokens[place])].endswith("</w>"):
            word = tokenizer.decode([int(token) for token in tokens[start : place + 1]]).strip()
            if any(character.isalnum() for character in word):
                words.append(word)
                places.append(list(range(start, place + 1)))
            start = place + 1
    return tuple(words), places


@lru_cache(maxsize=1)
def _tokenizer() -> SimpleTokenizer:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
