"""Two processes that share every batch are one: its losses and metrics, its files, its state."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from small_runs import child_environment, log_rows

STEPS, STOPPED = 24, 20
SCRIPT = """
import json, os, socket, sys
from dataclasses import replace
from pathlib import Path
import torch
from PIL import Image
from small_runs import OPTIONS, Signalling, Squares, smallest_model
from tfanet.training import records
from tfanet.training.loop import train
from tfanet.training.processes import joined
from tfanet.training.steps import Stepper

torch.set_num_threads(1)  # a fork has no threads but its own
records.draw_curves = lambda rows: Image.new("RGB", (8, 8))  # they are a third of so small a run
steps, stopped = int(sys.argv[2]), int(sys.argv[3])
options = replace(OPTIONS, batch=8, epochs=2, rate=5e-5, warmup=10, ema=0.9)

def run(out, interrupted_at=0):
    figures = []
    step = Stepper.step

    def noted(*arguments):
        figures.append(step(*arguments))
        return figures[-1]

    Stepper.step = noted
    state = out / "training.pt"
    pairs = Signalling(8 * steps // 2, interrupted_at)
    with joined("cpu") as (processes, _):
        own_out = out if processes.rank == 0 else out.with_name("second")
        # In FP64, for the gradient of a norm near zero makes what rounding leaves a hundred thousand times
        # as large.
        train(smallest_model().double(), pairs, Squares(40), own_out, options,
              resume=state if state.exists() else None, processes=processes)
    Stepper.step = step
    return figures

def fork(figures, *arguments, **environment):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ.update(environment)
            figures.write_text(json.dumps(run(*arguments)))
            code = 0
        finally:
            os._exit(code)
    return child

folder = Path(sys.argv[1])
(folder / "one.json").write_text(json.dumps(run(folder / "one")))  # here: the forks find every import done
with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = str(found.getsockname()[1])
world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
children = [
    fork(folder / f"two-{rank}.json", folder / "two", rank * 4 * stopped, RANK=str(rank), **world)
    for rank in range(2)
]
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
assert torch.load(folder / "two" / "training.pt", weights_only=True)["step"] == stopped
assert os.waitpid(fork(folder / "resumed.json", folder / "two"), 0)[1] == 0
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of one process; one of two that a signal to the second stops, and that one process ends."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-c", SCRIPT, folder, str(STEPS), str(STOPPED)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def figures(path):
    """Loss, its two terms and the gradient's norm of every step."""
    return [row[:4] for row in json.loads(path.read_text())]


def test_two_processes_have_the_losses_of_one(runs):
    one, two = figures(runs / "one.json"), figures(runs / "two-0.json")
    assert len(one) == STEPS
    assert len(two) == STOPPED
    for step, (expected, found) in enumerate(zip(one, two, strict=False), 1):
        assert found == pytest.approx(expected, rel=1e-6), step
    assert figures(runs / "two-1.json") == two


def test_one_process_goes_on_with_the_run_of_two(runs):
    for expected, found in zip(
        figures(runs / "one.json")[STOPPED:], figures(runs / "resumed.json"), strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-6)


def test_metrics_are_of_all_pairs_and_the_first_process_writes(runs):
    """The 40 validation pairs are two batches, one for each process."""
    names = ("step", "epoch", "loss", "val_loss", "val_miou", "val_oiou")
    one, two = log_rows(runs / "one"), log_rows(runs / "two")
    assert len(one) == len(two) == STEPS + 2
    for expected, found in zip(one, two, strict=True):
        for name in names:
            assert float(found[name] or 0) == pytest.approx(float(expected[name] or 0), rel=1e-5), name
    assert not (runs / "second").exists()
