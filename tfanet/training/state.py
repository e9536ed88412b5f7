"""The training state in its own file: everything needed to go on as if nothing had happened."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tfanet.config import TFANetConfig
from tfanet.errors import UserError
from tfanet.files import atomic_path, require_file

FORMAT = "tfanet-training-1"


@dataclass
class TrainingState:
    """Model, optimizer and position of an unfinished training run."""

    config: str
    """`TFANetConfig.to_json`."""
    options: dict[str, int | float | str]
    """Options that must be the same when the run goes on."""
    step: int
    """Optimizer steps done."""
    model: dict[str, Tensor]
    optimizer: dict
    rng: Tensor
    """State of torch's CPU generator (stochastic depth draws from it)."""
    cuda_rng: list[Tensor]
    """The same of each GPU's; empty where there is none."""

    def save(self, path: Path) -> None:
        """Write to `path` atomically; `UserError` when the disk is full."""
        with atomic_path(path) as temporary:
            try:
                torch.save({"format": FORMAT, **self.__dict__}, temporary)
            except RuntimeError as error:  # what torch's archive writer makes of an OSError
                raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def load_state(path: Path, config: TFANetConfig, options: dict[str, int | float | str]) -> TrainingState:
    """Read a training state and hold it against the run that is to go on.

    Raises `UserError` when the file is missing, damaged, of another kind, or of a run with other settings.
    """
    require_file(path, "training state")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"training state {path} is damaged or of another kind; train without --resume"
        ) from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise UserError(f"{path} is no training state of this version; train without --resume")
    state = TrainingState(**values)
    if TFANetConfig.from_json(state.config) != config:
        raise UserError(f"{path} is a run of another model config; use its preset or another --out")
    changed = [
        f"{key} was {state.options.get(key)}" for key in options if state.options.get(key) != options[key]
    ]
    if changed:
        raise UserError(f"cannot resume {path} with other options: {', '.join(changed)}")
    return state
