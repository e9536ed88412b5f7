"""CLIP's byte-pair encoding without PyTorch: the tokens equal those of open_clip for any text."""

from __future__ import annotations

import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from tfanet.data.preprocess import token_rows, tokenize
from tfanet.data.shapes import render_pair
from tfanet.data.tokens import VOCABULARY, BytePairs

VOCABULARY_FILE = Path(find_spec("open_clip").origin).parent / VOCABULARY


@pytest.fixture(scope="module")
def byte_pairs() -> BytePairs:
    return BytePairs(VOCABULARY_FILE)


@pytest.fixture(scope="module")
def reference() -> SimpleTokenizer:
    return SimpleTokenizer()


AWKWARD = [
    "",
    " \t\n",
    "the small red circle",
    "The man’s “red” mug, isn't it? we'll, they've, I'm, he'd, you're",
    "'S 'T 'LL don'tt ''s",
    "Left-most   Café\u00a0\u2003crème brûlée",
    "&lt;b&gt; &amp;amp; &#39;s",
    "<start_of_text> a <END_OF_TEXT> b <start_of_text",
    "123 4x4 ½ ² Ⅷ ١٢٣",
    "красный круг, 红色的圆, 赤い丸, عربى, हिन्दी",
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "İstanbul STRASSE ΣΊΣΥΦΟΣ ſ K ﬁ ﬀ",
    "cafe\u0301 a\u0000b\u0007c\u001cd\u0085e\u200bf\ufeffg",
    "schÃ¶n â€œquotedâ€\x9d",
    "antidisestablishmentarianism" * 5,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    '!!! ... ?!?! --- ___ $%^ \\ " ` ~',
]


@pytest.mark.parametrize("text", AWKWARD, ids=range(len(AWKWARD)))
def test_awkward_text(byte_pairs, reference, text):
    assert byte_pairs.encode(text) == reference.encode(text)


def test_random_text(byte_pairs, reference):
    draw = random.Random(0)
    ranges = [(0x20, 0x7F), (0x00, 0x300), (0x300, 0x3000), (0x3000, 0xD800), (0xE000, 0x110000)]
    for _ in range(1500):
        text = "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(24)))
        text = text.replace("e", draw.choice(["e", " ", "'s ", "&amp;", "the "]))
        assert byte_pairs.encode(text) == reference.encode(text), repr(text)


def test_words_of_the_vocabulary(byte_pairs, reference):
    words = [symbol.removesuffix("</w>") for symbol in reference.encoder if symbol.endswith("</w>")]
    for word in random.Random(0).sample(words, 2000):
        assert byte_pairs.encode(word) == reference.encode(word), word


def test_token_rows_equal_those_of_training(byte_pairs):
    texts = [render_pair(seed=3, index=index)[1] for index in range(20)] + ["", "man " * 40]
    np.testing.assert_array_equal(token_rows(byte_pairs, texts, 17), tokenize(texts, 17))
    assert (byte_pairs.sot_token_id, byte_pairs.eot_token_id) == (49406, 49407)


def test_pytorch_is_not_imported():
    code = (
        "import pathlib, sys\nimport tfanet.data.images, tfanet.data.preprocess\n"
        "from tfanet.data.tokens import BytePairs\n"
        f"assert BytePairs(pathlib.Path({str(VOCABULARY_FILE)!r})).encode('red') == [736]\n"
        "assert not {'torch', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
