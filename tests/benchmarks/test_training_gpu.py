"""`training_gpu.py` with a fake timer and fake memory readings; no GPU has run it."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import small_runs
import torch
import training_gpu
import training_measure
from kernel_choice import vectorised_paths
from remamber import remamber_steps
from report import NotAvailable
from timing import Timing
from training_measure import Candidate, Row

from tfanet.config import PRESETS
from tfanet.errors import UserError, VerificationError
from tfanet.ops import native

ABOUT = {"date": "2026-11-25 00:00 UTC"}
CPU = torch.device("cpu")

# What the benchmark uses of ReMamber's code, with a model of one layer.
FAKE_REMAMBER = {
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


class FakeMemory:
    def __init__(self):
        self.resets = 0

    def reset(self):
        self.resets += 1

    def bytes(self):
        return self.resets << 20


def candidate(name="a", losses=(1.0,), error=None, comparable=True):
    @contextmanager
    def open_steps():
        if error is not None:
            raise error
        remaining = iter(losses)
        yield lambda: next(remaining, losses[-1])

    return Candidate(name, open_steps, comparable)


def test_rows_have_times_and_memory_if_the_loss_is_that_of_the_first(tmp_path):
    candidates = [
        candidate("ours", [2.0]), candidate("near", [2.01]), candidate("off", [2.2]),
        candidate("nan", [float("nan")]), candidate("missing", error=NotAvailable("it is not installed")),
        candidate("full", error=RuntimeError("a|b\nc")), candidate("ReMamber", [9.0], comparable=False),
    ]  # fmt: skip
    times = iter([[0.1, 0.2, 0.4], [0.4], [0.5]])
    with pytest.raises(VerificationError, match=r"2 losses are off; the first: off: the first loss is 2"):
        training_gpu.report_on(candidates, 8, lambda step: Timing(next(times)), FakeMemory(), ABOUT, tmp_path)
    (path,) = tmp_path.glob("training-gpu-*.json")
    rows = [Row(**row) for row in json.loads(path.read_text())["results"]]
    assert [cells[1:6] for cells in training_measure.table(rows, 8).rows] == [
        ["200.0", "40.00", "1.00", "1", "2.0000"], ["400.0", "20.00", "0.50", "2", "2.0100"],
        ["–", "–", "–", "–", "2.2000"], ["–", "–", "–", "–", "nan"], ["–"] * 5, ["–"] * 5,
        ["500.0", "16.00", "0.40", "7", "9.0000"],
    ]  # fmt: skip
    assert [row.why for row in rows[4:]] == ["it is not installed", "RuntimeError: a|b", ""]
    (text,) = tmp_path.glob("training-gpu-*.md")
    assert "goal, 1.5 times the speed of ReMamber: 2.50, met" in text.read_text()


def test_goal_is_missed_or_not_measured():
    ours, remamber = Row("ours", [1.0]), Row("ReMamber", [1.4])
    assert training_measure.goal([ours, remamber]).endswith("1.40, missed")
    assert training_measure.goal([ours]).endswith("not measured")


def test_candidates_run_on_a_cpu_or_have_a_reason(tmp_path, monkeypatch):
    """All but torch.compile, which takes minutes: only its call is recorded."""
    folder = tmp_path / "remamber"
    (folder / "model").mkdir(parents=True)
    (folder / "pretrain").mkdir()
    (folder / "pretrain" / "read").touch()
    for name, code in FAKE_REMAMBER.items():
        (folder / "model" / name).write_text(code)
    monkeypatch.setitem(PRESETS, "small", small_runs.SMALL)
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, dynamic: compiled.append(type(module).__name__)
    )
    path, cwd = list(sys.path), Path.cwd()
    candidates = training_measure.candidates("small", 2, "fp32", CPU, folder)
    rows = training_gpu.report_on(candidates, 2, lambda step: Timing([step()]), FakeMemory(), ABOUT, tmp_path)
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
            assert (
                row.seconds[0] < row.loss
            )  # the fake timer returns the loss of the second step, which is lower
    assert (sys.path, Path.cwd()) == (path, cwd)
    assert "model" not in sys.modules


def test_vectorised_paths_use_no_compiled_kernels():
    with vectorised_paths():
        assert not native.scans(torch.zeros(1, 4, 4), 1)


def test_invalid_checkout_is_a_row(tmp_path):
    options = replace(small_runs.OPTIONS, batch=2)
    pairs = training_measure.random_pairs(small_runs.SMALL, 2)
    remamber = Candidate("ReMamber", lambda: remamber_steps(tmp_path, options, pairs, "left"))
    row = training_measure.measure(remamber, None, lambda step: pytest.fail("timed"), FakeMemory())
    assert "is not a checkout of ReMamber" in row.why


def test_peak_memory_of_a_cpu_is_not_measured():
    memory = training_measure.PeakMemory(CPU)
    memory.reset()
    assert memory.bytes() is None


def test_invalid_options_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device here; --device cpu --preset tiny --batch 2"):
        training_gpu.training_gpu(out=tmp_path)
    with pytest.raises(UserError, match="unknown candidates yours; known: ours, channels first"):
        training_gpu.training_gpu(out=tmp_path, device="cpu", preset="tiny", only="yours")
