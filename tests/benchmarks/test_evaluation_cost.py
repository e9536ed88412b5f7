"""`evaluation_cost.py`: the synthetic RefCOCO, the estimate, the report."""

from __future__ import annotations

import dataclasses
import json

import evaluation_cost
import pytest
from refcoco import mean_kilobytes
from small_engines import write_onnx

from tfanet.config import PRESETS
from tfanet.data.refer import ReferDataset


def test_synthetic_val_has_the_sizes_of_refcoco_val(tmp_path):
    evaluation_cost.write_val(tmp_path, 15)
    pairs = ReferDataset(tmp_path, "refcoco", "val")
    assert len(pairs) == round(15 * 10834 / 1500)
    assert len({pairs[i].image_id for i in range(len(pairs))}) == 15
    assert len({pairs[i].ref_id for i in range(len(pairs))}) == round(15 * 3811 / 1500)
    for i in range(len(pairs)):
        assert pairs.image(pairs[i]).size == (640, 480)
        assert 0.01 < pairs.mask(pairs[i]).mean() < 0.3
    sizes = [path.stat().st_size for path in (tmp_path / "train2014").iterdir()]
    assert 40e3 < min(sizes) < max(sizes) < 300e3
    assert mean_kilobytes(tmp_path) == pytest.approx(sum(sizes) / 15e3)
    annotations = json.loads((tmp_path / "refcoco/instances.json").read_text())["annotations"]
    rle = [annotation["id"] for annotation in annotations if isinstance(annotation["segmentation"], dict)]
    assert rle == [10, 20, 30]


def test_estimate_of_refcoco_val():
    parts = evaluation_cost.Parts(engine=90.0, data=6.0, metrics=4.0)
    assert parts.share == pytest.approx(0.1)
    assert parts.sequential_minutes == pytest.approx(10834 * 0.1 / 60)
    assert parts.overlapped_minutes == pytest.approx(10834 * 0.09 / 60)


def test_report_with_given_and_with_measured_engine_time(tmp_path, monkeypatch, capsys):
    small = dataclasses.replace(PRESETS["tiny"], image_size=96)
    monkeypatch.setattr(evaluation_cost, "known_preset", lambda name: small)
    common = {"preset": "tiny", "images": 1, "timed": 2, "threads": 1, "out": tmp_path}
    evaluation_cost.evaluation_cost(engine=None, engine_ms=50.0, **common)
    (file,) = tmp_path.glob("evaluation_cost-*.json")
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    parts = results["parts_ms"]
    assert parts["engine"] == 50
    assert min(parts.values()) > 0
    assert results["share"] == pytest.approx((parts["data"] + parts["metrics"]) / sum(parts.values()))
    assert "one after the other" in capsys.readouterr().out
    evaluation_cost.evaluation_cost(engine=write_onnx(tmp_path / "small.onnx"), engine_ms=None, **common)
    measured = json.loads(file.read_text(encoding="utf-8"))
    assert measured["about"]["engine"].startswith("small.onnx (ONNX Runtime")
    assert 0 < measured["results"]["parts_ms"]["engine"] < 50
