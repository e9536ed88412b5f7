"""Expressions as CLIP token ids, and CLIP's byte-pair encoding without PyTorch.

open_clip has the same encoding but imports PyTorch; `BytePairs` is for servers without it.
"""

from __future__ import annotations

import gzip
import html
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
"""The file of CLIP's merges, which open_clip contains."""
MERGES = 48894
SPECIAL = ("<start_of_text>", "<end_of_text>")
_WORD_END = "</w>"
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class BytePairs:
    """CLIP's byte-pair encoding (Sennrich et al., 2016) from its file of merges; an `Encoder`.

    A word starts as one symbol per byte, the last one marked as the end of the word. The adjacent pair that
    comes first in the file is merged, until no pair is in the file; each symbol has an id.
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
        """The ids of a text's words, without SOT and EOT; empty for a text without words."""
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
            word = _merge_pair(word, first)
        return tuple(self._ids[symbol] for symbol in word)


def _merge_pair(word: list[str], pair: tuple[str, str]) -> list[str]:
    """`word` with every occurrence of `pair`, from the left, merged into one symbol."""
    merged: list[str] = []
    position = 0
    while position < len(word):
        matches = tuple(word[position : position + 2]) == pair
        merged.append("".join(pair) if matches else word[position])
        position += 2 if matches else 1
    return merged


def _letters() -> dict[int, str]:
    """A printable character for each byte, in the vocabulary's order: Latin-1's first, then from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}
