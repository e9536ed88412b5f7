"""From picture and sentence to the model's tensors, the same for training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from tfanet.data.images import logits_to_size, open_image, resize_image, resize_mask
from tfanet.data.tokens import token_rows

if TYPE_CHECKING:
    from tfanet.data.refer import ReferDataset

__all__ = ["TrainingPairs", "logits_to_size", "open_image", "resize_image", "resize_mask", "tokenize"]


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def tokenize(sentences: list[str], length: int, strict: bool = False) -> np.ndarray:
    """CLIP token ids int64 `[len(sentences), length]` by open_clip's tokenizer: see `token_rows`."""
    return token_rows(_tokenizer(), sentences, length, strict)


def token_counts(sentences: Iterable[str]) -> list[int]:
    """How many tokens each sentence has by open_clip's tokenizer, SOT and EOT counted: 2 for an empty one."""
    return [len(_tokenizer().encode(sentence)) + 2 for sentence in sentences]


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
