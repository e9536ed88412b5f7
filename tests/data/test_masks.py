from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from tfanet.data.masks import segmentation_area, segmentation_to_mask
from tfanet.errors import UserError

HEIGHT, WIDTH = 12, 16
SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def compressed(mask: np.ndarray, as_text: bool = True) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode() if as_text else rle["counts"]}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    borders = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(borders, prepend=0, append=flat.size).tolist()}


INNER, OUTER = box(2, 2, 8, 8), box(5, 4, 11, 13)
OVERLAP = [4.0, 5.0, 13.0, 5.0, 13.0, 11.0, 4.0, 11.0]


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        pytest.param([SQUARE], INNER, id="polygon"),
        pytest.param([SQUARE, OVERLAP], INNER | OUTER, id="overlapping polygons"),
        pytest.param([[2.0, 2.0, 9.0, 9.0], SQUARE], INNER, id="four numbers before a polygon"),
        pytest.param([SQUARE, [2.0, 2.0, 9.0, 9.0]], INNER, id="four numbers after a polygon"),
        pytest.param([[int(number) for number in SQUARE]], INNER, id="integers"),
        pytest.param(compressed(INNER), INNER, id="compressed RLE"),
        pytest.param(compressed(INNER, as_text=False), INNER, id="compressed RLE, bytes"),
        pytest.param(uncompressed(INNER), INNER, id="uncompressed RLE"),
        pytest.param([compressed(INNER)], INNER, id="list of one RLE"),
        pytest.param([compressed(INNER), uncompressed(OUTER)], INNER | OUTER, id="list of both RLEs"),
    ],
)
def test_masks(segmentation: Any, expected: np.ndarray) -> None:
    mask = segmentation_to_mask(segmentation, HEIGHT, WIDTH)
    assert mask.dtype == np.uint8
    assert segmentation_area(segmentation, HEIGHT, WIDTH) == expected.sum()
    np.testing.assert_array_equal(mask, expected)


def test_polygons_may_exceed_the_image() -> None:
    beyond = [-160.0, -160.0, 160.0, -160, 160.0, 160.0, -160.0, 160.0]
    assert segmentation_to_mask([beyond], HEIGHT, WIDTH).all()


def test_invalid_value_of_a_polygon_is_named() -> None:
    with pytest.raises(UserError, match=r"contain nan, not a number from -160 to 160"):
        segmentation_to_mask([[*SQUARE, 1.0, float("nan")]], HEIGHT, WIDTH)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_compressed_counts_as_pycocotools_writes_them(density: float) -> None:
    mask = (np.random.default_rng(0).random((90, 70)) < density).astype(np.uint8)
    mask[40:60, 10:60] = density < 0.5
    rle = coco.encode(np.asfortranarray(mask))
    np.testing.assert_array_equal(segmentation_to_mask(rle, 90, 70), mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        pytest.param([], id="empty"),
        pytest.param([[1.0, 1.0, 4.0, 4.0]], id="only four numbers"),
        pytest.param([[1.0, 1.0, 4.0, 4.0, 2.0, 2.0, 9.0]], id="odd"),
        pytest.param([["a"] * 6], id="text"),
        *(
            pytest.param([SQUARE, [*SQUARE[:-1], value]], id=f"polygon with {name}")
            for name, value in {
                "NaN": float("nan"),
                "infinity": float("inf"),
                "-infinity": float("-inf"),
                "1e9": 1e9,
                "a huge integer": 10**400,
                "a little too much": 160.5,
                "-160.5": -160.5,
                "true": True,
                "null": None,
                "a list": [1.0],
            }.items()
        ),
        pytest.param("polygon", id="string"),
        pytest.param(None, id="null"),
        pytest.param([SQUARE, compressed(INNER)], id="mixed"),
        pytest.param({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, id="other size"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, id="counts too short"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": [-5, 5 + WIDTH * HEIGHT]}, id="negative counts"),
        pytest.param({"size": [HEIGHT, WIDTH]}, id="no counts"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": "zzzz"}, id="truncated compressed counts"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": ""}, id="empty compressed counts"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": "~" * 40}, id="invalid compressed counts"),
    ],
)
def test_invalid_segmentations(segmentation: Any) -> None:
    with pytest.raises(UserError, match=r"^the (segmentation|RLE)"):
        segmentation_to_mask(segmentation, HEIGHT, WIDTH)
