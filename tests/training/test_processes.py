"""Two processes have the losses, metrics, files and state of one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from small_runs import log_rows, subprocess_environment

pytestmark = pytest.mark.integration

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
from tfanet.training.processes import join_processes
from tfanet.training.steps import Stepper

torch.set_num_threads(1)  # a forked process has only one thread
records.draw_curves = lambda rows: Image.new("RGB", (8, 8))  # a third of the time of such a small run
steps, stopped = int(sys.argv[2]), int(sys.argv[3])
options = replace(OPTIONS, batch=8, epochs=2, lr=5e-5, warmup=10, ema=0.9)

def run(out, interrupted_at=0):
    results = []
    step = Stepper.step

    def recorded(*arguments):
        results.append(step(*arguments))
        return results[-1]

    Stepper.step = recorded
    state = out / "training.pt"
    pairs = Signalling(8 * steps // 2, interrupted_at)
    with join_processes("cpu") as (processes, _):
        own_out = out if processes.rank == 0 else out.with_name("second")
        # In FP64: the gradient of a norm near zero multiplies rounding errors by a hundred thousand.
        train(smallest_model().double(), pairs, Squares(40), own_out, options,
              resume=state if state.exists() else None, processes=processes)
    Stepper.step = step
    return results

def fork(results, *arguments, **environment):
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.environ.update(environment)
            results.write_text(json.dumps(run(*arguments)))
            code = 0
        finally:
            os._exit(code)
    return process

folder = Path(sys.argv[1])
(folder / "one.json").write_text(json.dumps(run(folder / "one")))  # in this process: forks have all imports
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = str(free.getsockname()[1])
world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
processes = [
    fork(folder / f"two-{rank}.json", folder / "two", rank * 4 * stopped, RANK=str(rank), **world)
    for rank in range(2)
]
assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0]
assert torch.load(folder / "two" / "training.pt", weights_only=True)["step"] == stopped
assert os.waitpid(fork(folder / "resumed.json", folder / "two"), 0)[1] == 0
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of one process; a run of two, stopped by a signal to the second and resumed by one process."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-c", SCRIPT, folder, str(STEPS), str(STOPPED)]
    done = subprocess.run(command, env=subprocess_environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def step_results(path):
    """Loss, its two terms and the gradient norm of every step."""
    return [row[:4] for row in json.loads(path.read_text())]


def test_two_processes_have_the_losses_of_one(runs):
    one, two = step_results(runs / "one.json"), step_results(runs / "two-0.json")
    assert len(one) == STEPS
    assert len(two) == STOPPED
    for step, (expected, actual) in enumerate(zip(one, two, strict=False), 1):
        assert actual == pytest.approx(expected, rel=1e-6), step
    assert step_results(runs / "two-1.json") == two


def test_one_process_resumes_the_run_of_two(runs):
    for expected, actual in zip(
        step_results(runs / "one.json")[STOPPED:], step_results(runs / "resumed.json"), strict=True
    ):
        assert actual == pytest.approx(expected, rel=1e-6)


def test_metrics_are_of_all_samples_and_only_the_first_process_writes(runs):
    """The 40 validation samples are two batches, one per process."""
    names = ("step", "epoch", "loss", "val_loss", "val_miou", "val_oiou")
    one, two = log_rows(runs / "one"), log_rows(runs / "two")
    assert len(one) == len(two) == STEPS + 2
    for expected, actual in zip(one, two, strict=True):
        for name in names:
            assert float(actual[name] or 0) == pytest.approx(float(expected[name] or 0), rel=1e-5), name
    assert not (runs / "second").exists()
