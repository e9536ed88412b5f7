"""`engines_gpu.py` with a fake timer and fake memory readings; no GPU has run it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import engines_gpu
import engines_measure
import numpy as np
import pytest
import torch
from engines_measure import Candidate
from small_engines import write_onnx
from timing import Timing

from tfanet.checkpoint import save_model
from tfanet.errors import UserError, VerificationError

EXPECTED = np.random.default_rng(0).normal(0, 5, (8, 4, 4)).astype(np.float32)
IMAGES = np.arange(8, dtype=np.uint8)[:, None]
ABOUT = {"date": "2026-11-25 00:00 UTC"}


def correct(images, tokens):
    return EXPECTED[images[:, 0]]


def candidate(infer, name="a", precision="fp32", error=None):
    @contextmanager
    def open_engine():
        if error is not None:
            raise error
        yield infer

    return Candidate(name, precision, open_engine)


def measured(candidate, timer=lambda call: Timing([0.1, 0.2, 0.4])):
    used_bytes = iter([100, 160, 190]).__next__
    return engines_measure.measure(candidate, [1, 8], IMAGES, IMAGES, EXPECTED, timer, used_bytes)


def test_correct_engine_has_times_and_memory():
    rows = measured(candidate(correct))
    assert [(row.batch, row.seconds, row.memory_bytes, row.why) for row in rows] == [
        (1, [0.1, 0.2, 0.4], 60, ""), (8, [0.1, 0.2, 0.4], 90, "")
    ]  # fmt: skip
    assert all(row.parity.max_abs_error == 0 for row in rows)


def test_calls_with_the_batch_size_are_timed():
    calls = []

    def infer(images, tokens):
        calls.append(len(images))
        return correct(images, tokens)

    measured(candidate(infer), timer=lambda call: Timing([call() is None]))
    assert calls == [1] * 8 + [1] + [8] + [8]


def test_wrong_engine_is_not_timed():
    rows = measured(
        candidate(lambda images, tokens: -correct(images, tokens)), timer=lambda call: pytest.fail("timed")
    )
    assert [(row.wrong, row.seconds, row.memory_bytes) for row in rows] == [(True, [], None)] * 2
    assert all(row.why.startswith("not timed: ") for row in rows)


@pytest.mark.parametrize("error", [UserError("no GPU"), ImportError("no module"), RuntimeError("no\ndriver")])
def test_engine_that_does_not_open_is_a_row_with_its_message(error):
    rows = measured(candidate(correct, error=error))
    assert [row.why for row in rows] == [f"{type(error).__name__}: no{str(error)[2:].splitlines()[0]}"] * 2
    assert not any(row.wrong or row.seconds for row in rows)


def test_a_failing_batch_size_leaves_the_others():
    def infer(images, tokens):
        if len(images) == 8:
            raise RuntimeError("out of memory")
        return correct(images, tokens)

    one, eight = measured(candidate(infer))
    assert one.seconds
    assert eight.why == "RuntimeError: out of memory"


def test_table_has_speedups_over_the_first_and_all_reasons():
    rows = measured(candidate(correct))
    rows += measured(candidate(correct, "b"), lambda call: Timing([0.05]))
    rows += measured(candidate(correct, "c", error=UserError("a|b")))
    lines = engines_measure.table(rows).rows
    assert lines[0][3:8] == ["200.00", "380.00", "5.0", "1.00", "0"]
    assert lines[3][3:7] == ["50.00", "50.00", "160.0", "4.00"]
    assert lines[5][3:] == ["–"] * 7 + ["UserError: a/b"]


def test_every_runtime_is_a_row_on_a_machine_without_a_gpu(random_model, tmp_path, monkeypatch):
    """PyTorch runs on the CPU; the rows of the others have the reason why they do not."""
    checkpoint = tmp_path / "model.safetensors"
    save_model(random_model, checkpoint)
    monkeypatch.setattr(engines_gpu, "PAIRS", 1)
    network = write_onnx(tmp_path / "small.onnx")
    built = []

    def plan(backend):
        built.append(backend)
        raise UserError(f"{backend} cannot be built here")

    files = SimpleNamespace(onnx=lambda precision: network, plan=plan)
    modes = []

    def compiler(module, mode):
        modes.append(mode)
        return module

    candidates = engines_gpu.candidates(checkpoint, random_model, torch.device("cpu"), files, compiler)
    names = [(candidate.name, candidate.precision) for candidate in candidates]
    assert len(set(names)) == len(names) == 13
    rows = engines_gpu.report_on(
        candidates, random_model, [1], lambda call: Timing([0.5]), lambda: 0, ABOUT, tmp_path
    )
    assert [(row.name, row.precision) for row in rows] == names
    timed = {row.name for row in rows if row.seconds}
    if not torch.cuda.is_available():
        assert all("PyTorch" in name or "torch.compile" in name for name in timed)
        assert len(timed) == 4
        assert "cannot use CUDA" in next(row.why for row in rows if row.name == "ONNX Runtime, CUDA")
    assert modes == ["default", "reduce-overhead"]
    assert built == ["tensorrt-rtx"] * 3 + ["tensorrt"] * 3
    (written,) = tmp_path.glob("engines-gpu-*.json")
    assert len(json.loads(written.read_text())["results"]) == 13


def test_logits_beyond_the_tolerances_fail_the_benchmark(random_model, tmp_path, monkeypatch):
    monkeypatch.setattr(engines_gpu, "PAIRS", 1)
    size = random_model.config.image_size
    wrong = candidate(lambda images, tokens: np.ones((len(images), size, size), np.float32))
    with pytest.raises(VerificationError, match="1 rows exceed the tolerances; the first: a"):
        engines_gpu.report_on(
            [wrong], random_model, [1], lambda call: Timing([1.0]), lambda: 0, ABOUT, tmp_path
        )


def test_invalid_options_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device here"):
        engines_gpu.engines_gpu(out=tmp_path)
    with pytest.raises(UserError, match="at most 8, the largest batch size"):
        engines_gpu.engines_gpu(batches="1,16", out=tmp_path)
