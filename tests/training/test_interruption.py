"""A run killed at any moment resumes to the same weights, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from small_runs import log_rows, subprocess_environment

pytestmark = pytest.mark.integration

SCRIPT = """
import os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
import torch
from PIL import Image
from small_runs import OPTIONS, SMALLEST, Squares, smallest_model
from tfanet.training import records
from tfanet.training.loop import train

torch.set_num_threads(1)  # a forked process has only one thread
records.draw_curves = lambda rows: Image.new("RGB", (8, 8))  # a third of the time of such a small run
options = replace(OPTIONS, epochs=2, ema=0.99, save_every=1)
config = replace(SMALLEST, drop_path=0.3)

def run(out):
    state = out / "training.pt"
    resume = state if state.exists() else None
    train(smallest_model(config), Squares(24), Squares(2), out, options, resume=resume)

def fork(out, seconds=0):
    process = os.fork()
    if process == 0:
        code = 1
        try:
            # SIGPROF kills the process after so much CPU time, wherever it is, as SIGKILL does. After a wall
            # clock time on a busy machine it could be killed before anything is saved.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            run(out)
            code = 0
        finally:
            os._exit(code)
    return process

folder = Path(sys.argv[1])
started = time.process_time()
run(folder / "uninterrupted")  # in this process, so that forks have all imports
seconds = time.process_time() - started
rng, killed, kills, places = random.Random(0), 0, 0, set()
while kills < 20 or len(places) < 5:
    out = folder / f"killed-{killed}"
    status = os.waitpid(fork(out, rng.uniform(0.01, seconds / 4)), 0)[1]
    if os.WIFSIGNALED(status):
        kills += 1
        state = out / "training.pt"
        places.add(torch.load(state, weights_only=True)["step"] if state.exists() else 0)
    else:  # it finished first: kill another run
        assert status == 0
        killed += 1
assert os.waitpid(fork(folder / f"killed-{killed}"), 0)[1] == 0
print(f"{kills} kills with {sorted(places)} steps saved")
"""


def test_run_killed_twenty_times_ends_with_the_same_weights(tmp_path):
    command = [sys.executable, "-c", SCRIPT, tmp_path]
    done = subprocess.run(command, env=subprocess_environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = torch.load(tmp_path / "uninterrupted" / "training.pt", weights_only=True)["trained"]
    rows = log_rows(tmp_path / "uninterrupted")
    for folder in tmp_path.glob("killed-*"):
        trained = torch.load(folder / "training.pt", weights_only=True)["trained"]
        for kind in ("model", "ema"):
            assert trained[kind].keys() == expected[kind].keys()
            for name, tensor in expected[kind].items():
                assert torch.equal(trained[kind][name], tensor), name
        speed = {"images_per_second": None}
        assert [row | speed for row in log_rows(folder)] == [row | speed for row in rows]
        assert not list(folder.glob(".*"))
    assert len(rows) == 12 + 2
