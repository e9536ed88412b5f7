"""Commands as a user runs them, and checkpoints to run them on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

# Pytest imports tests without touching sys.path; `fake_engines` lies beside them.
sys.path.insert(0, str(Path(__file__).parent))


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

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
