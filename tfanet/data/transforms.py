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
    from tfanet.data.packed import PackedImages
    from tfanet.data.refer import Expression, ReferDataset

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
    {0, 1}. With `limit` only the first so many expressions are samples. `packed` holds pictures and masks of
    this size; what it lacks is decoded.

    The last picture decoded and the last mask are kept: the sentences of one object follow one another, so
    validation, which takes them in order, decodes each picture once.
    """

    def __init__(
        self,
        source: ReferDataset,
        image_size: int,
        token_length: int,
        limit: int | None = None,
        packed: PackedImages | None = None,
    ) -> None:
        self.source, self.packed = source, packed
        self.image_size = image_size
        self.expressions = list(source)[:limit]
        self.tokens = torch.from_numpy(tokenize([pair.text for pair in self.expressions], token_length))
        self._image: tuple[int, np.ndarray] | None = None
        self._mask: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.expressions)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pair = self.expressions[index]
        return {
            "image": torch.from_numpy(self._picture(pair)),
            "tokens": self.tokens[index],
            "mask": torch.from_numpy(self._object(pair)),
        }

    def _picture(self, pair: Expression) -> np.ndarray:
        found = self.packed.image(pair.image_id) if self.packed else None
        if found is not None:
            return found
        if self._image is None or self._image[0] != pair.image_id:
            self._image = pair.image_id, resize_image(self.source.image(pair), self.image_size)
        return self._image[1].copy()

    def _object(self, pair: Expression) -> np.ndarray:
        found = self.packed.mask(pair.ann_id) if self.packed else None
        if found is not None:
            return found
        if self._mask is None or self._mask[0] != pair.ann_id:
            self._mask = pair.ann_id, resize_mask(self.source.mask(pair), self.image_size)
        return self._mask[1].copy()

    @property
    def references(self) -> list[list[int]]:
        """The places of the samples of each reference, in order."""
        found: dict[int, list[int]] = {}
        for place, pair in enumerate(self.expressions):
            found.setdefault(pair.ref_id, []).append(place)
        return list(found.values())
