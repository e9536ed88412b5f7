"""The benchmark of engines with a timer and a memory gauge that are handed in; no GPU has run it."""

from __future__ import annotations

import importlib
import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tfanet.checkpoint import save_model
from tfanet.errors import UserError, VerificationError

TESTS = Path(__file__).resolve().parent
write_onnx = importlib.import_module("small_engines").write_onnx
measure, engines_gpu = map(importlib.import_module, ("engines_measure", "engines_gpu"))

EXPECTED = np.random.default_rng(0).normal(0, 5, (8, 4, 4)).astype(np.float32)
IMAGES = np.arange(8, dtype=np.uint8)[:, None]
ABOUT = {"date": "2026-11-25 00:00 UTC"}


def right(images, tokens):
    return EXPECTED[images[:, 0]]


def rival(infer, name="a", precision="fp32", refusal=None):
    @contextmanager
    def opened():
        if refusal is not None:
            raise refusal
        yield infer

    return measure.Rival(name, precision, opened)


def found(contender, timer=lambda call: [0.1, 0.2, 0.4]):
    gauge = iter([100, 160, 190]).__next__
    return measure.measure(contender, [1, 8], IMAGES, IMAGES, EXPECTED, timer, gauge)


def test_a_right_engine_is_timed_and_weighed():
    rows = found(rival(right))
    assert [(row.batch, row.seconds, row.memory_bytes, row.why) for row in rows] == [
        (1, [0.1, 0.2, 0.4], 60, ""), (8, [0.1, 0.2, 0.4], 90, "")
    ]  # fmt: skip
    assert all(row.parity.max_abs_error == 0 for row in rows)


def test_what_is_timed_is_a_call_of_the_batch():
    calls = []

    def infer(images, tokens):
        calls.append(len(images))
        return right(images, tokens)

    found(rival(infer), timer=lambda call: [call() is None])
    assert calls == [1] * 8 + [1] + [8] + [8]


def test_a_wrong_engine_is_not_timed():
    rows = found(
        rival(lambda images, tokens: -right(images, tokens)), timer=lambda call: pytest.fail("timed")
    )
    assert [(row.wrong, row.seconds, row.memory_bytes) for row in rows] == [(True, [], None)] * 2
    assert all(row.why.startswith("not timed: ") for row in rows)


@pytest.mark.parametrize("error", [UserError("no GPU"), ImportError("no module"), RuntimeError("no\ndriver")])
def test_what_does_not_load_is_a_row_with_its_message(error):
    rows = found(rival(right, refusal=error))
    assert [row.why for row in rows] == [f"{type(error).__name__}: no{str(error)[2:].splitlines()[0]}"] * 2
    assert not any(row.wrong or row.seconds for row in rows)


def test_a_batch_that_fails_leaves_the_others():
    def infer(images, tokens):
        if len(images) == 8:
            raise RuntimeError("out of memory")
        return right(images, tokens)

    one, eight = found(rival(infer))
    assert one.seconds
    assert eight.why == "RuntimeError: out of memory"


def test_the_table_compares_with_the_first_and_hides_nothing():
    rows = found(rival(right)) + found(rival(right, "b"), lambda call: [0.05]) + found(
        rival(right, "c", refusal=UserError("a|b"))
    )  # fmt: skip
    lines = measure.table(rows).rows
    assert lines[0][3:8] == ["200.00", "380.00", "5.0", "1.00", "0"]
    assert lines[3][3:7] == ["50.00", "50.00", "160.0", "4.00"]
    assert lines[5][3:] == ["–"] * 7 + ["UserError: a/b"]


def test_the_timer_warms_up_and_keeps_to_its_limit():
    calls = []
    assert len(measure.wall_timer(20, 10.0)(lambda: calls.append(0))) == 20
    assert len(calls) == 20 + measure.WARMUP_CALLS


def test_every_runtime_is_a_row_on_a_machine_without_a_gpu(random_model, tmp_path, monkeypatch):
    """PyTorch runs here, on the CPU; the others say why they do not."""
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

    contenders = engines_gpu.rivals(checkpoint, random_model, torch.device("cpu"), files, compiler)
    names = [(contender.name, contender.precision) for contender in contenders]
    assert len(set(names)) == len(names) == 13
    rows = engines_gpu.report_on(
        contenders, random_model, [1], lambda call: [0.5], lambda: 0, ABOUT, tmp_path
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


def test_logits_out_of_bounds_end_the_benchmark(random_model, tmp_path, monkeypatch):
    monkeypatch.setattr(engines_gpu, "PAIRS", 1)
    size = random_model.config.image_size
    wrong = rival(lambda images, tokens: np.ones((len(images), size, size), np.float32))
    with pytest.raises(VerificationError, match="1 figures out of bounds; the first: a"):
        engines_gpu.report_on([wrong], random_model, [1], lambda call: [1.0], lambda: 0, ABOUT, tmp_path)


def test_without_a_gpu_the_command_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device here"):
        engines_gpu.engines_gpu(out=tmp_path)
    with pytest.raises(UserError, match="at most 8 pictures"):
        engines_gpu.engines_gpu(batches="1,16", out=tmp_path)
