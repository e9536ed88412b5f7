"""Resizing of images, masks and logits, and tokenisation: the one copy. No PyTorch.

`tokenize` and `token_counts` import open_clip, and with it PyTorch, on their first call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from PIL import Image

from tfanet.deprecation import renamed_arguments
from tfanet.errors import UserError


def resize_image(image: Image.Image, size: int) -> np.ndarray:
    """`image` as uint8 `[size, size, 3]`, RGB: bilinear, antialiased, aspect not kept (as LAVT)."""
    resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask uint8 `[H, W]` as uint8 `[size, size]`: nearest neighbour, so that it stays 0 and 1."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    return np.array(image.resize((size, size), Image.Resampling.NEAREST), dtype=np.uint8)


def logits_to_size(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 `[S, S]` resized to float32 `[height, width]`, in pixels: bilinear with `align_corners=False`.

    The same values as `torch.nn.functional.interpolate`, up to rounding, without importing PyTorch.
    """
    values = np.asarray(logits, dtype=np.float32)
    above, below, lower = _neighbours(values.shape[0], height)
    left, right, inward = _neighbours(values.shape[1], width)
    # Columns first: selecting rows of the larger result copies contiguous memory.
    wide = values[:, left] + (values[:, right] - values[:, left]) * inward
    return wide[above] + (wide[below] - wide[above]) * lower[:, None]


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each target pixel: the two source pixels around it (int64), and the weight of the second."""
    position = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    first = np.minimum(position.astype(np.int64), source - 1)
    return first, np.minimum(first + 1, source - 1), (position - first).astype(np.float32)


class Encoder(Protocol):
    """What `token_rows` needs of a tokenizer; open_clip's `SimpleTokenizer` is one."""

    sot_token_id: int
    eot_token_id: int

    def encode(self, text: str, /) -> list[int]: ...


def token_rows(encoder: Encoder, texts: Sequence[str], length: int, strict: bool = False) -> np.ndarray:
    """CLIP token ids int64 `[len(texts), length]`: SOT, the words, EOT, then zeros.

    A text of more than `length` tokens, including SOT and EOT, is truncated and ends with EOT. With `strict`
    it raises `UserError` instead, as does a text without any word.
    """
    tokens = np.zeros((len(texts), length), dtype=np.int64)
    for row, text in zip(tokens, texts, strict=True):
        words = encoder.encode(text)
        if strict and not words:
            raise UserError("the expression is empty; describe the object in words")
        if strict and len(words) + 2 > length:
            raise UserError(
                f"the expression has {len(words) + 2} tokens, the model takes {length}: shorten {text!r}"
            )
        words = words[: length - 2]
        row[: len(words) + 2] = [encoder.sot_token_id, *words, encoder.eot_token_id]
    return tokens


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@renamed_arguments(sentences="texts")
def tokenize(texts: list[str], length: int, strict: bool = False) -> np.ndarray:
    """CLIP token ids int64 `[len(texts), length]` by open_clip's tokenizer; see `token_rows`."""
    return token_rows(_tokenizer(), texts, length, strict)


def token_counts(texts: Iterable[str]) -> list[int]:
    """Number of tokens of each text by open_clip's tokenizer, including SOT and EOT: 2 if it is empty."""
    return [len(_tokenizer().encode(text)) + 2 for text in texts]
