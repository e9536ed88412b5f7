"""`loader_cpu.py`: loaders that return the same pixels are reported, others are rejected."""

from __future__ import annotations

import json
from pathlib import Path

import loader_cpu
import numpy as np
import pytest
from refcoco import write_refcoco
from typer.testing import CliRunner

from tfanet.data.packed import PackedImages
from tfanet.errors import VerificationError


def test_report(tmp_path: Path) -> None:
    arguments = ["--images", "4", "--size", "64", "--repeats", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(loader_cpu.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("loader_cpu-*.json")
    loaders = json.loads(path.read_text())["results"]
    assert [loader["samples"] for loader in loaders] == [4, 4, 12, 4]
    assert all(len(loader["seconds"]) == 2 and loader["samples a second"] > 0 for loader in loaders)
    (text,) = tmp_path.glob("loader_cpu-*.md")
    assert f"speedup over {loader_cpu.BASELINE}" in text.read_text()


def test_different_pixels_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_refcoco(tmp_path / "set", [[3]] * 4, "train")
    plain = PackedImages.mask

    def one_pixel_off(packed: PackedImages, ann_id: int) -> np.ndarray:
        mask = plain(packed, ann_id)
        assert mask is not None
        mask[3, 3] ^= 1
        return mask

    monkeypatch.setattr(PackedImages, "mask", one_pixel_off)
    monkeypatch.setattr(PackedImages, "_require_same_pixels", lambda packed, files: None)
    with pytest.raises(VerificationError, match="differs between the loaders"):
        loader_cpu.measure_all(tmp_path / "set", tmp_path / "packed", 64, 1)
