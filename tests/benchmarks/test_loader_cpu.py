"""The loader's benchmark: it refuses ways that give other pixels, and reports those that give the same."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tfanet.data.packed import PackedPictures
from tfanet.errors import VerificationError

loader_cpu = importlib.import_module("loader_cpu")


def test_the_report(tmp_path: Path) -> None:
    arguments = ["--pictures", "4", "--size", "64", "--repeats", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(loader_cpu.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (figures,) = tmp_path.glob("loader_cpu-*.json")
    ways = json.loads(figures.read_text())["results"]
    assert [way["samples"] for way in ways] == [4, 4, 12, 4]
    assert all(len(way["seconds"]) == 2 and way["samples a second"] > 0 for way in ways)
    (text,) = tmp_path.glob("loader_cpu-*.md")
    assert f"times as fast as {loader_cpu.RIVAL}" in text.read_text()


def test_other_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader_cpu.make_set(tmp_path / "set", 4)
    plain = PackedPictures.mask

    def one_pixel_off(packed: PackedPictures, ann_id: int) -> np.ndarray:
        mask = plain(packed, ann_id)
        assert mask is not None
        mask[3, 3] ^= 1
        return mask

    monkeypatch.setattr(PackedPictures, "mask", one_pixel_off)
    monkeypatch.setattr(PackedPictures, "_require_same", lambda packed, files: None)
    with pytest.raises(VerificationError, match="differs from one way"):
        loader_cpu.measure_all(tmp_path / "set", tmp_path / "packed", 64, 1)
