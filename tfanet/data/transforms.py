"""From picture and sentence to the model's tensors, the same for training, evaluation and prediction."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from tfanet.data.images import logits_to_size, open_image, resize_image, resize_mask
from tfanet.errors import UserError

if TYPE_CHECKING:
    from tfanet.data.refer import ReferDataset

__all__ = ["TrainingPairs", "logits_to_size", "open_image", "resize_image", "resize_mask", "tokenize"]


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def tokenize(sentences: list[str], length: int, strict: bool = False) -> np.ndarray:
    """CLIP token ids int64 `[len(sentences), length]`: SOT, the words, EOT, then zeros.

    A sentence of more than `length` tokens, SOT and EOT counted, is cut and ends with EOT. With `strict`
    it raises `UserError` instead, and so does a sentence without any word.
    """
    tokenizer = _tokenizer()
    tokens = np.zeros((len(sentences), length), dtype=np.int64)
    for row, sentence in zip(tokens, sentences, strict=True):
        words = tokenizer.encode(sentence)
        if strict and not words:
            raise UserError("the sentence is empty; describe the object in words")
        if strict and len(words) + 2 > length:
            raise UserError(
                f"the sentence has {len(words) + 2} tokens, the model takes {length}: shorten {sentence!r}"
            )
        words = words[: length - 2]
        row[: len(words) + 2] = [tokenizer.sot_token_id, *words, tokenizer.eot_token_id]
    return tokens


class TrainingPairs(Dataset):
    """The samples of a `ReferDataset` as tensors of the model's size; picklable, for loader workers.

    Item i is a dictionary: `image` uint8 `[S, S, 3]` RGB, `tokens` int64 `[L]`, `mask` uint8 `[S, S]` in
    {0, 1}.
    """

    def __init__(self, source: ReferDataset, image_size: int, token_length: int) -> None:
        self.source = source
        self.image_size = image_size
        self.tokens = torch.from_numpy(tokenize([pair.sentence for pair in source], token_length))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pair = self.source[index]
        return {
            "image": torch.from_numpy(resize_image(self.source.image(pair), self.image_size)),
            "tokens": self.tokens[index],
            "mask": torch.from_numpy(resize_mask(self.source.mask(pair), self.image_size)),
        }
