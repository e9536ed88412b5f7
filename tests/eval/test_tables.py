"""Tables in the terminal, in Markdown and in JSON."""

from __future__ import annotations

import json
import re

import pytest
from fake_engines import Boxes, FakeEngine, nothing, oracle

from tfanet_eval import tables
from tfanet_eval.evaluation import evaluate

CELLS = [
    ("mIoU", 0.98765, "98.77"),
    ("P@0.7", 1.0, "100.00"),
    ("Δ mIoU", -0.0012, "-0.12"),
    ("Δ mIoU", -0.00001, "+0.00"),
    ("max logit error", 0.00012345, "1.2e-04"),
    ("max logit error", float("inf"), "inf"),
    ("mask agreement", 0.99987, "99.987"),
    ("ms per image", 12.345, "12.3"),
    ("MB", 5_216_000, "5.22"),
    ("count", 7, "7"),
    ("mIoU", None, "–"),
]


@pytest.mark.parametrize(("column", "value", "text"), CELLS)
def test_cells(column, value, text):
    assert tables.cell(column, value) == text


def test_parity_columns_exist_only_with_a_reference():
    alone = tables.metric_columns(evaluate(FakeEngine(nothing), Boxes(2)))
    compared = tables.metric_columns(evaluate(FakeEngine(nothing), Boxes(2), reference=FakeEngine(oracle)))
    assert set(compared) - set(alone) == {"Δ mIoU", "max logit error", "mask agreement"}
    assert compared["Δ mIoU"] == -1.0


def test_markdown_and_json_have_the_same_rows():
    rows = [{"engine": "a", "mIoU": 0.5, "unselected": 1}, {"engine": "b"}]
    columns = ("engine", "mIoU")
    assert tables.markdown(rows, columns) == "| engine | mIoU |\n| --- | ---: |\n| a | 50.00 |\n| b | – |\n"
    assert json.loads(json.dumps(tables.select(rows, columns))) == [
        {"engine": "a", "mIoU": 0.5},
        {"engine": "b", "mIoU": None},
    ]


def test_terminal_table_has_every_cell_and_prints_brackets_literally(capsys):
    rows = [{"engine": "[bold]model[/bold].onnx", "mIoU": 0.1234}]
    tables.show(rows, ("engine", "mIoU"), "on [val]")
    out = capsys.readouterr().out
    for text in ("on [val]", "[bold]model[/bold].onnx", "12.34"):
        assert text in out


def test_narrow_terminal_transposes_the_table(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    columns = ("split", "mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9", "ms per image")
    values = {"mIoU": 0.1111, "oIoU": 0.2222, "P@0.5": 0.3333, "P@0.7": 0.4444, "P@0.9": 0.5555}
    tables.show([{"split": "val", **values, "ms per image": 66.6}], columns, "metrics")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 40
    assert ["oIoU", "22.22"] in [line.split() for line in lines]
    assert ["ms", "per", "image", "66.6"] in [line.split() for line in lines]
