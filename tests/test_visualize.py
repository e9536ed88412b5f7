"""Overlays: colours and outlines; contact sheets: size, legend and file formats."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tfanet.errors import UserError
from tfanet.visualize import (
    PREDICTION,
    TARGET,
    Cell,
    contact_sheet,
    mask_image,
    overlay,
    require_image_path,
    save_image,
)

GREY = (128, 128, 128)


def image(width: int = 120, height: int = 80) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def box(width: int = 120, height: int = 80, left: int = 40, right: int = 80) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[20:60, left:right] = True
    return mask


def pixels(drawing: Image.Image) -> np.ndarray:
    return np.asarray(drawing).astype(int)


def test_prediction_is_blue_with_a_white_edge_and_the_rest_dimmed():
    drawn = pixels(overlay(image(), box()))
    assert drawn[40, 60, 2] > 150 > drawn[40, 60, 0]
    assert drawn[40, 39:41].min() > 180
    assert (drawn[40, 5] < 128).all()
    assert np.ptp(drawn[40, 5]) == 0


def test_target_is_a_yellow_outline_without_fill():
    drawn = pixels(overlay(image(), np.zeros((80, 120), dtype=bool), box()))
    line = drawn[40, 34:44]
    assert min(np.abs(line - np.array(TARGET)).sum(axis=1)) < 60
    assert np.array_equal(drawn[40, 60], drawn[40, 5])


@pytest.mark.parametrize("full", [False, True], ids=["empty", "full"])
def test_mask_without_an_edge_has_no_outline(full):
    drawn = pixels(overlay(image(), np.full((80, 120), full)))
    assert (drawn == drawn[0, 0]).all()
    assert (drawn[0, 0, 2] > drawn[0, 0, 0]) == full


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (640, 480)], ids=str)
def test_overlay_keeps_the_image_size(size):
    mask = np.ones(size[::-1], dtype=bool)
    mask[0, 0] = False
    assert overlay(image(*size), mask, mask).size == size


def test_overlay_does_not_change_its_input():
    original = image()
    overlay(original, box(), box())
    assert original.getcolors() == [(120 * 80, GREY)]


def test_mask_image_is_0_and_255():
    written = mask_image(box())
    assert written.mode == "L"
    assert np.array_equal(np.asarray(written), np.where(box(), 255, 0))


@pytest.mark.parametrize(
    ("count", "columns", "across", "down"),
    [
        pytest.param(1, 3, 1, 1, id="one"),
        pytest.param(4, 3, 3, 2, id="two-rows"),
        pytest.param(4, 1, 1, 4, id="tower"),
    ],
)
def test_contact_sheet_size_follows_rows_and_columns(count, columns, across, down):
    cells = [Cell(image(), "a box", box(), box())] * count
    one = contact_sheet(cells[:1]).size
    sheet = contact_sheet(cells, columns)
    two = contact_sheet(cells[:1] * 2, 2).size
    three = contact_sheet(cells[:1] * 2, 1).size
    assert sheet.size == (
        one[0] + (across - 1) * (two[0] - one[0]),
        one[1] + (down - 1) * (three[1] - one[1]),
    )


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2)], ids=str)
def test_contact_sheet_takes_images_of_any_shape_and_expressions_of_any_length(size):
    mask = np.ones(size[::-1], dtype=bool)
    sheet = contact_sheet([Cell(image(*size), "word " * 60, mask), Cell(image(*size), "W" * 300, mask, mask)])
    assert sheet.mode == "RGB"


def test_legend_has_the_target_colour_only_with_a_target():
    def colours(sheet):
        return {colour for _, colour in sheet.crop((0, 0, sheet.width, 44)).getcolors(1 << 20)}

    assert {PREDICTION, TARGET} <= colours(contact_sheet([Cell(image(), "a", box(), box())]))
    assert TARGET not in colours(contact_sheet([Cell(image(), "a", box())]))


def test_contact_sheet_without_cells_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("new/a.jpeg", "JPEG")])
def test_suffix_chooses_the_format(tmp_path, name, kind):
    require_image_path(tmp_path / name)
    assert not (tmp_path / name).exists()
    save_image(image(), tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert (saved.format, saved.size) == (kind, (120, 80))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sheet.txt", "must end in .png, .jpg, .jpeg"),
        ("sheet", "is not the name of an image"),
        ("file/sheet.png", "cannot write"),
        ("folder.png", "is a folder"),
    ],
)
def test_invalid_image_path_is_rejected(tmp_path, name, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=message):
        require_image_path(tmp_path / name)
