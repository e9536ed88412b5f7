"""COCO segmentations as masks: polygons and run-length encodings (RLE)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfanet.errors import UserError


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons, an RLE (compressed or not) or a list of RLEs as uint8 `[height, width]` in {0, 1}.

    The mask is the union of all parts. Raises `UserError` for anything else, and for an RLE of another size.
    """
    parts: Any = [segmentation] if isinstance(segmentation, dict) else segmentation
    if isinstance(parts, list) and parts and all(isinstance(part, dict) for part in parts):
        return np.bitwise_or.reduce([_rle_to_mask(part, height, width) for part in parts])
    if _lists_only(parts):
        return polygons_to_mask(parts, height, width)
    raise UserError("the segmentation is neither a list of polygons nor an RLE")


def segmentation_area(segmentation: Any, height: int, width: int) -> int:
    """The number of pixels of `segmentation_to_mask`, without drawing polygons; raises as that does."""
    if _lists_only(segmentation):
        from pycocotools import mask

        coco: Any = mask
        return int(coco.area(_polygon_runs(segmentation, height, width)))
    return int(segmentation_to_mask(segmentation, height, width).sum())


def polygons_to_mask(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """The union of polygons `[x0, y0, x1, y1, ...]` in pixels as uint8 `[height, width]` in {0, 1}.

    Polygons of fewer than three corners have no area and are skipped; pycocotools would read four numbers as
    a box, and then every other polygon, too. Raises `UserError` if none is left, and for a value that is not
    finite or exceeds ten times the image's longer side.
    """
    from pycocotools import mask

    coco: Any = mask
    return np.ascontiguousarray(coco.decode(_polygon_runs(polygons, height, width)), dtype=np.uint8)


def _polygon_runs(polygons: list[list[float]], height: int, width: int) -> Any:
    """pycocotools' RLE of the union of all polygons that have an area."""
    from pycocotools import mask

    # pycocotools' type stubs are incomplete.
    coco: Any = mask
    with_area = [polygon for polygon in polygons if len(polygon) >= 6]
    if not with_area or any(len(polygon) % 2 for polygon in with_area):
        raise UserError("the segmentation has no polygon of three or more x, y pairs")
    # pycocotools follows every edge pixel by pixel: an endless one crashes it or fills the memory.
    limit = 10 * max(height, width)
    invalid = [value for polygon in with_area for value in polygon if not _is_number_within(value, limit)]
    if invalid:
        value = f"{invalid[0]!r:.60}"
        raise UserError(f"the segmentation's polygons contain {value}, not a number from -{limit} to {limit}")
    return coco.merge(coco.frPyObjects(with_area, height, width))


def _lists_only(parts: Any) -> bool:
    return isinstance(parts, list) and bool(parts) and all(isinstance(part, list) for part in parts)


def _is_number_within(value: Any, limit: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= limit


def _rle_to_mask(part: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Alternating runs of 0 and 1, column by column.

    Not by pycocotools, which leaves pixels that the runs do not cover uninitialised.
    """
    counts, size = part.get("counts"), part.get("size")
    if size != [height, width]:
        raise UserError(f"the RLE's size is {size}, the image's is {[height, width]}")
    if isinstance(counts, str | bytes):
        counts = _runs(counts if isinstance(counts, bytes) else counts.encode())
    if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
        raise UserError("the RLE's counts are not non-negative integers")
    if sum(counts) != height * width:
        raise UserError(f"the RLE's counts do not add up to the image's {height * width} pixels")
    flat = np.repeat(np.arange(len(counts), dtype=np.int64) % 2, counts)
    return np.ascontiguousarray(flat.reshape(width, height).T, dtype=np.uint8)


def _runs(text: bytes) -> list[int]:
    """The run lengths in COCO's compressed counts: groups of 5 bits, low first; 32 means more follow.

    From the fourth run on, the text contains the difference from the second last run.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for byte in text:
        group = byte - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            signed = value - (1 << shift) if group & 16 else value
            runs.append(signed + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs
