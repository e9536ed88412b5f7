"""Images that show where a predicted mask is right and wrong."""

from __future__ import annotations

import numpy as np
from PIL import Image

_HIT, _MISSED, _ADDED = (64, 196, 140), (255, 176, 0), (226, 62, 112)
KEY = (("object, predicted", _HIT), ("object, missed", _MISSED), ("background, predicted", _ADDED))
"""True positives, false negatives, false positives; colour-blind readers can tell the colours apart."""
_TINT = 0.62


def error_map(image: Image.Image, pred: np.ndarray, target: np.ndarray) -> Image.Image:
    """`image` in grey with the colours of `KEY`; masks are bool `[H, W]` of its size."""
    base = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32) * 0.75 + 40
    for colour, where in ((_HIT, pred & target), (_MISSED, ~pred & target), (_ADDED, pred & ~target)):
        base[where] = (1 - _TINT) * base[where] + _TINT * np.array(colour, dtype=np.float32)
    return Image.fromarray(base.round().astype(np.uint8))
