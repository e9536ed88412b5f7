"""The benchmark of training with a timer and a gauge that are handed in; no GPU has run it."""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tfanet.config import PRESETS
from tfanet.errors import UserError, VerificationError

TESTS = Path(__file__).resolve().parent
small_runs = importlib.import_module("small_runs")
OPTIONS = small_runs.OPTIONS
measure, training_gpu = map(importlib.import_module, ("training_measure", "training_gpu"))
not_here = importlib.import_module("gpu_measure").NotHere

ABOUT = {"date": "2026-11-25 00:00 UTC"}
CPU = torch.device("cpu")

# What the benchmark uses of ReMamber's code, with one layer for its model.
STAND_IN = {
    "conv_segmenter.py": """
import torch
from timm.models import register_model
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)

    def forward(self, x, text, mask=None):
        assert len(text) == len(x) and isinstance(text[0], str)
        score = self.layer(x)
        loss = nn.functional.binary_cross_entropy_with_logits(score, mask)
        return score.detach(), mask, loss

@register_model
def ReMamber_Conv(img_size, model_size, **kwargs):
    open("pretrain/read").close()
    return Model(), []
""",
    "utils.py": """
import torch

def create_optimizer(args, model, new):
    return torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
""",
}


class Gauge:
    def __init__(self):
        self.resets = 0

    def reset(self):
        self.resets += 1

    def peak(self):
        return self.resets << 20


def rival(name="a", losses=(1.0,), refusal=None, comparable=True):
    @contextmanager
    def opened():
        if refusal is not None:
            raise refusal
        left = iter(losses)
        yield lambda: next(left, losses[-1])

    return measure.Rival(name, opened, comparable)


def test_rows_are_timed_weighed_and_held_against_the_first(tmp_path):
    contenders = [
        rival("ours", [2.0]), rival("near", [2.01]), rival("off", [2.2]), rival("nan", [float("nan")]),
        rival("absent", refusal=not_here("it is not installed")),
        rival("full", refusal=RuntimeError("a|b\nc")),
        rival("ReMamber", [9.0], comparable=False),
    ]  # fmt: skip
    times = iter([[0.1, 0.2, 0.4], [0.4], [0.5]])
    with pytest.raises(VerificationError, match=r"2 losses are off; the first: off: the first loss is 2"):
        training_gpu.report_on(contenders, 8, lambda step: next(times), Gauge(), ABOUT, tmp_path)
    (path,) = tmp_path.glob("training-gpu-*.json")
    rows = [measure.Row(**row) for row in json.loads(path.read_text())["results"]]
    assert [cells[1:6] for cells in measure.table(rows, 8).rows] == [
        ["200.0", "40.00", "1.00", "1", "2.0000"], ["400.0", "20.00", "0.50", "2", "2.0100"],
        ["–", "–", "–", "–", "2.2000"], ["–", "–", "–", "–", "nan"], ["–"] * 5, ["–"] * 5,
        ["500.0", "16.00", "0.40", "7", "9.0000"],
    ]  # fmt: skip
    assert [row.why for row in rows[4:]] == ["it is not installed", "RuntimeError: a|b", ""]
    (text,) = tmp_path.glob("training-gpu-*.md")
    assert "goal, 1.5 times the speed of ReMamber: 2.50, met" in text.read_text()


def test_the_goal_is_missed_or_not_measured():
    ours, theirs = measure.Row("ours", [1.0]), measure.Row("ReMamber", [1.4])
    assert measure.goal([ours, theirs]).endswith("1.40, missed")
    assert measure.goal([ours]).endswith("not measured")


def test_every_way_runs_on_a_cpu_or_says_why_not(tmp_path, monkeypatch):
    """All but torch.compile, which takes minutes: that it is asked for is seen in the options."""
    folder = tmp_path / "remamber"
    (folder / "model").mkdir(parents=True)
    (folder / "pretrain").mkdir()
    (folder / "pretrain" / "read").touch()
    for name, code in STAND_IN.items():
        (folder / "model" / name).write_text(code)
    monkeypatch.setitem(PRESETS, "small", small_runs.SMALL)
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, dynamic: compiled.append(type(module).__name__)
    )
    path, place = list(sys.path), Path.cwd()
    found = measure.rivals("small", 2, "fp32", CPU, folder)
    rows = training_gpu.report_on(found, 2, lambda step: [step()], Gauge(), ABOUT, tmp_path)
    names = [
        "ours",
        "channels first",
        "checkpointing",
        "vectorised",
        "mamba_ssm",
        "torch.compile",
        "ReMamber",
    ]
    assert [row.name for row in rows] == names
    assert {row.name: row.why for row in rows if not row.seconds} == {"mamba_ssm": "it needs CUDA"}
    assert compiled.count("VSSBlock") == sum(small_runs.SMALL.vmamba_depths)
    assert compiled[-1] == "WFDM"
    for row in rows:
        if row.seconds and row.name != "ReMamber":
            assert row.loss == pytest.approx(rows[0].loss, rel=1e-4)
            assert row.seconds[0] < row.loss  # the injected timer took the second step: it learned
    assert (sys.path, Path.cwd()) == (path, place)
    assert "model" not in sys.modules


def test_vectorised_means_without_our_compiled_kernels():
    native = importlib.import_module("tfanet.ops.native")
    with importlib.import_module("gpu_cases").vectorised_paths():
        assert not native.scans(torch.zeros(1, 4, 4), 1)


def test_what_is_no_checkout_is_a_row(tmp_path):
    options = measure.replace(OPTIONS, batch=2)
    other = measure.Rival(
        "ReMamber", lambda: measure.theirs(tmp_path, options, measure.random_pairs(2, 32, 17))
    )
    row = measure.measure(other, None, lambda step: pytest.fail("timed"), Gauge())
    assert "is no checkout of ReMamber" in row.why


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device here; --device cpu --preset tiny --batch 2"):
        training_gpu.training_gpu(out=tmp_path)
    with pytest.raises(UserError, match="unknown rivals yours; known: ours, channels first"):
        training_gpu.training_gpu(out=tmp_path, device="cpu", preset="tiny", only="yours")
