"""Sentences as CLIP token ids, and CLIP's byte-pair encoding for where PyTorch is not. No PyTorch.

open_clip has the same encoding but imports PyTorch for it, so `BytePairs` serves a server that does without.
"""

from __future__ import annotations

import gzip
import html
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
"""The name of CLIP's file of merges, which open_clip ships."""
MERGES = 48894
SPECIAL = ("<start_of_text>", "<end_of_text>")
_WORD_END = "</w>"
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class BytePairs:
    """CLIP's encoding (Sennrich et al., 2016, over bytes) by its file of merges; an `Encoder`.

    A word is spelled in symbols, one a byte, of which the last is marked as the word's end. The adjacent pair
    that stands earliest in the file is merged, and so on until none stands there; each symbol has an id.
    """

    def __init__(self, vocabulary: Path) -> None:
        import regex

        lines = gzip.decompress(vocabulary.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
        merges = [tuple(line.split()) for line in lines]
        letters = _letters()
        symbols = [*letters.values(), *(letter + _WORD_END for letter in letters.values())]
        symbols += ["".join(pair) for pair in merges]
        self._rank = {pair: rank for rank, pair in enumerate(merges)}
        self._ids = {symbol: index for index, symbol in enumerate([*symbols, *SPECIAL])}
        self._letters = letters
        self._pieces = regex.compile("|".join([*SPECIAL, _PIECES]), regex.IGNORECASE)
        self._word = lru_cache(maxsize=10_000)(self._merge)
        self.sot_token_id, self.eot_token_id = (self._ids[name] for name in SPECIAL)

    def encode(self, text: str) -> list[int]:
        """The ids of a text's words, without SOT and EOT; an empty list for a text without any."""
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        pieces = self._pieces.findall(" ".join(text.split()).lower())
        return [index for piece in pieces for index in self._word(piece)]

    def _merge(self, piece: str) -> tuple[int, ...]:
        if piece in SPECIAL:
            return (self._ids[piece],)
        word = [self._letters[byte] for byte in piece.encode("utf-8")]
        word[-1] += _WORD_END
        while len(word) > 1:
            first = min(pairwise(word), key=lambda pair: self._rank.get(pair, MERGES))
            if first not in self._rank:
                break
            word = _joined(word, first)
        return tuple(self._ids[symbol] for symbol in word)


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    """`word` with every occurrence of `pair`, from the left, made one symbol."""
    merged: list[str] = []
    position = 0
    while position < len(word):
        found = tuple(word[position : position + 2]) == pair
        merged.append("".join(pair) if found else word[position])
        position += 2 if found else 1
    return merged


def _letters() -> dict[int, str]:
    """A printable character for each byte, in the vocabulary's order: Latin-1's first, then from U+0100."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}
