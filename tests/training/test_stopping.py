"""Signals to every process of a run stop it between two steps, in training and in validation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from small_runs import OPTIONS, Signalling, Squares, log_rows, smallest_model, subprocess_environment

from tfanet.errors import UserError
from tfanet.training.loop import train
from tfanet.training.processes import join_processes

pytestmark = pytest.mark.integration

GROUP = """
import os, signal, subprocess, sys
from dataclasses import replace
from pathlib import Path
from small_runs import OPTIONS, Squares, smallest_model
from tfanet.training.loop import train
from tfanet.training.steps import Stepper

step, left = Stepper.step, [int(sys.argv[3])]

def signalled(self, *arguments):
    if left[0]:
        left[0] -= 1
        send = f"import os, signal; os.killpg({os.getpgrp()}, signal.{sys.argv[2]})"
        subprocess.run([sys.executable, "-S", "-c", send], start_new_session=True, check=True)
    return step(self, *arguments)

Stepper.step = signalled
signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may run in the background of a shell
options = replace(OPTIONS, workers=2)
print(train(smallest_model(), Squares(64), Squares(2), Path(sys.argv[1]), options))
"""


class KillsLoader(Squares):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def state(out):
    return torch.load(out / "training.pt", weights_only=True)


def signalled(out, name, times):
    """A run with loader processes that signals all its processes in each of the first `times` steps."""
    command = [sys.executable, "-c", GROUP, out, name, str(times)]
    return subprocess.run(
        command,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_loader_processes_ignore_a_signal_to_all_processes(tmp_path, name):
    """As sent by a terminal, torchrun and a cluster."""
    done = signalled(tmp_path, name, 1)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr[-2000:]
    assert 1 <= state(tmp_path)["step"] < 16


@pytest.mark.parametrize(("name", "codes"), [("SIGINT", (1, -2)), ("SIGTERM", (-15,))])
def test_second_signal_ends_the_run_and_its_loaders_at_once(tmp_path, name, codes):
    assert signalled(tmp_path, name, 2).returncode in codes
    assert not (tmp_path / "training.pt").exists()


def test_dead_loader_process_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^DataLoader worker \(pid.* fewer --workers"):
        train(smallest_model(), KillsLoader(), Squares(2), tmp_path, replace(OPTIONS, workers=1))


def test_unreadable_sample_in_a_loader_process_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^sample 3: image 3.jpg is damaged$"):
        train(smallest_model(), Squares(8, (3,)), Squares(2), tmp_path, replace(OPTIONS, workers=2))


def test_no_validation_starts_after_the_signal(tmp_path):
    options = replace(OPTIONS, epochs=2)
    assert not train(smallest_model(), Signalling(8, at=8), Squares(2), tmp_path, options)
    assert (state(tmp_path)["step"], state(tmp_path)["validated"]) == (2, 0)
    resume = tmp_path / "training.pt"
    assert train(smallest_model(), Squares(8), Squares(2), tmp_path, options, resume=resume)
    assert [row["step"] for row in log_rows(tmp_path) if row["val_miou"]] == ["2", "4"]


def test_interrupted_validation_is_repeated_on_resume(tmp_path):
    validation = Signalling(100, at=5)
    assert not train(smallest_model(), Squares(8), validation, tmp_path, OPTIONS)
    assert validation.served == 32  # one batch
    assert (state(tmp_path)["step"], state(tmp_path)["validated"]) == (2, 0)
    resume, splits = tmp_path / "training.pt", {"val": Signalling(100, at=5)}
    resumed = {"resume": resume, "splits": splits}
    assert not train(smallest_model(), Squares(8), validation, tmp_path, OPTIONS, **resumed)
    assert not (tmp_path / "splits.csv").exists()
    assert train(smallest_model(), Squares(8), validation, tmp_path, OPTIONS, **resumed)
    assert (tmp_path / "splits.csv").read_text().startswith("split,expressions,mIoU,oIoU\nval,100,")


def test_run_resumed_in_another_folder_saves_its_best_weights_there(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    options = replace(OPTIONS, epochs=2)
    assert not train(smallest_model(), Signalling(8, at=9), Squares(2), first, options)
    torch.save(state(first) | {"best": 2.0}, first / "training.pt")
    resumed = {"resume": first / "training.pt"}
    assert train(smallest_model(), Squares(8), Squares(2), second, options, **resumed)
    assert (second / "best.safetensors").exists()


def test_more_processes_than_gpus_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="on a machine with 1 GPUs"), join_processes("cuda"):
        pass


def test_warmup_longer_than_the_run_is_reported(tmp_path, capsys):
    assert train(smallest_model(), Squares(8), Squares(2), tmp_path, replace(OPTIONS, warmup=20))
    assert (
        "the warm-up of 20 steps is longer than the run of 2: the learning rate reaches 10% of"
        in capsys.readouterr().err
    )
