"""Run commands as a user does, on checkpoints of random weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import small_engines
import torch


@dataclass(frozen=True)
class Outcome:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys, tmp_path) -> Callable[..., Outcome]:
    """`command(main, *arguments)` runs a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(main: Callable[[], None], *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Outcome(end.value.code if isinstance(end.value.code, int) else 0, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def checkpoint(random_model, tmp_path_factory) -> Path:
    """A checkpoint of random weights."""
    from tfanet.checkpoint import save_model

    path = tmp_path_factory.mktemp("checkpoint") / "random.safetensors"
    save_model(random_model, path)
    return path


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of other random weights."""
    import tfanet
    from tfanet.checkpoint import save_model

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "other.safetensors"
    save_model(tfanet.build_model("tiny"), path)
    return path


@pytest.fixture(scope="module")
def one_thread():
    """One thread: threads that wait for each other on busy cores slow a short test down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture
def evaluated(command, checkpoint, shapes_root):
    """Run `tfanet-eval` on all of val and testA with additional options."""
    from tfanet_eval.cli.evaluate import main

    def call(*options):
        return command(
            main, "--engine", checkpoint, "--reference", checkpoint, "--data", shapes_root, "--split", "val",
            "--split", "testA", "--batch", 2, *options,
        )  # fmt: skip

    return call


@pytest.fixture(scope="module")
def full_run(one_thread, checkpoint, shapes_root, tmp_path_factory) -> Path:
    """A folder with results.jsonl and summary.json of the command that `evaluated` runs."""
    from tfanet_eval.jobs import EvaluationJob, run_job
    from tfanet_eval.output import Outputs, write_outputs

    folder = tmp_path_factory.mktemp("full-run")
    job = EvaluationJob(checkpoint, checkpoint, shapes_root, "refcoco", ("val", "testA"), batch=2)
    write_outputs(job, run_job(job, results=folder / "results.jsonl"), Outputs(json=folder / "summary.json"))
    return folder


@pytest.fixture
def small_onnx(tmp_path) -> Path:
    """An ONNX file of a few nodes, with its sidecar: images 32 x 32, five tokens."""
    return small_engines.write_onnx(tmp_path / "small.onnx")
