"""Image and expression as the model's tensors, the same for training, evaluation and prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from tfanet.data.preprocess import resize_image, resize_mask, tokenize

if TYPE_CHECKING:
    from tfanet.data.packed import PackedImages
    from tfanet.data.refer import Expression, ReferDataset


class TrainingPairs(Dataset):
    """The samples of a `ReferDataset` as tensors of the model's size; picklable, for loader workers.

    Item i is a dictionary: `image` uint8 `[S, S, 3]` RGB, `tokens` int64 `[L]`, `mask` uint8 `[S, S]` in
    {0, 1}. With `limit`, only the first `limit` expressions are samples. `packed` has images and masks of
    this size; those it lacks are decoded.

    The last decoded image and mask are cached: the expressions of an object follow one another, so
    validation, which reads them in order, decodes each image once.
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
            "image": torch.from_numpy(self._resized_image(pair)),
            "tokens": self.tokens[index],
            "mask": torch.from_numpy(self._resized_mask(pair)),
        }

    def _resized_image(self, pair: Expression) -> np.ndarray:
        image = self.packed.image(pair.image_id) if self.packed else None
        if image is not None:
            return image
        if self._image is None or self._image[0] != pair.image_id:
            self._image = pair.image_id, resize_image(self.source.image(pair), self.image_size)
        return self._image[1].copy()

    def _resized_mask(self, pair: Expression) -> np.ndarray:
        mask = self.packed.mask(pair.ann_id) if self.packed else None
        if mask is not None:
            return mask
        if self._mask is None or self._mask[0] != pair.ann_id:
            self._mask = pair.ann_id, resize_mask(self.source.mask(pair), self.image_size)
        return self._mask[1].copy()

    @property
    def references(self) -> list[list[int]]:
        """The sample indices of each reference, in order."""
        references: dict[int, list[int]] = {}
        for index, pair in enumerate(self.expressions):
            references.setdefault(pair.ref_id, []).append(index)
        return list(references.values())
