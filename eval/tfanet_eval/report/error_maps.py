"""Where a prediction is right and wrong, as small pictures for a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

HIT, MISSED, ADDED = (64, 196, 140), (255, 176, 0), (226, 62, 112)
"""Object found, object missed, found where there is none: colours that colour-blind eyes tell apart."""
KEY = (("object, found", HIT), ("object, missed", MISSED), ("not the object, but marked", ADDED))
SIDE = 240
_TINT = 0.62


@dataclass(frozen=True)
class Inline:
    """A picture within a page."""

    uri: str
    width: int
    height: int


def error_map(picture: Image.Image, mask: np.ndarray, truth: np.ndarray) -> Image.Image:
    """`picture` in grey with the colours of `KEY`; masks are bool `[H, W]` of its size."""
    base = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32) * 0.75 + 40
    for colour, where in ((HIT, mask & truth), (MISSED, ~mask & truth), (ADDED, mask & ~truth)):
        base[where] = (1 - _TINT) * base[where] + _TINT * np.array(colour, dtype=np.float32)
    return Image.fromarray(base.round().astype(np.uint8))


def inline(picture: Image.Image) -> Inline:
    """`picture` as a JPEG of at most `SIDE` pixels a side, in a data URI."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=82)
    return Inline(f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}", *small.size)
