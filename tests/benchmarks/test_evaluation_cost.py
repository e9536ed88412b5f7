"""The benchmark of an evaluation's cost: pictures of COCO's sizes, parts of a known sum, a report."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest

from tfanet.config import PRESETS
from tfanet.data.refer import ReferDataset

cost = importlib.import_module("evaluation_cost")
write_onnx = importlib.import_module("small_engines").write_onnx


def test_the_pictures_are_as_many_and_as_large_as_refcocos(tmp_path):
    found = ReferDataset(cost.write_pictures(tmp_path, 15), "refcoco", "val")
    assert len(found) == round(15 * 10834 / 1500)
    assert len({found[i].image_id for i in range(len(found))}) == 15
    assert len({found[i].ref_id for i in range(len(found))}) == round(15 * 3811 / 1500)
    for i in range(len(found)):
        assert found.image(found[i]).size == (640, 480)
        assert 0.01 < found.mask(found[i]).mean() < 0.3
    sizes = [path.stat().st_size for path in (tmp_path / "train2014").iterdir()]
    assert 40e3 < min(sizes) < max(sizes) < 300e3


def test_the_projection_adds_up():
    parts = cost.Parts(engine=90.0, data=6.0, metrics=4.0)
    assert parts.share == pytest.approx(0.1)
    assert parts.minutes(beside=False) == pytest.approx(10834 * 0.1 / 60)
    assert parts.minutes(beside=True) == pytest.approx(10834 * 0.09 / 60)


def test_a_report_of_a_given_and_of_a_measured_engine(tmp_path, monkeypatch, capsys):
    small = dataclasses.replace(PRESETS["tiny"], image_size=96)
    monkeypatch.setattr(cost, "known_preset", lambda name: small)
    common = {"preset": "tiny", "pictures": 1, "timed": 2, "threads": 1, "out": tmp_path}
    cost.evaluation_cost(engine=None, engine_ms=50.0, **common)
    (file,) = tmp_path.glob("evaluation_cost-*.json")
    found = json.loads(file.read_text(encoding="utf-8"))["results"]
    parts = found["parts_ms"]
    assert parts["engine"] == 50
    assert min(parts.values()) > 0
    assert found["share"] == pytest.approx((parts["data"] + parts["metrics"]) / sum(parts.values()))
    assert "one after the other" in capsys.readouterr().out
    cost.evaluation_cost(engine=write_onnx(tmp_path / "small.onnx"), engine_ms=None, **common)
    measured = json.loads(file.read_text(encoding="utf-8"))
    assert measured["about"]["engine"].startswith("small.onnx (ONNX Runtime")
    assert 0 < measured["results"]["parts_ms"]["engine"] < 50
