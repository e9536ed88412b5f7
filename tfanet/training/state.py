"""The training state in its own file: everything needed to go on as if nothing had happened."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfanet.config import TFANetConfig
from tfanet.errors import UserError
from tfanet.files import atomic_path, require_file

FORMAT = "tfanet-training-2"
_DAMAGED = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, LookupError, AttributeError,
    TypeError,
)  # fmt: skip
"""What `torch.load` raises for files that were cut or changed."""


@dataclass
class TrainingState:
    """Model, optimizer and position of an unfinished training run."""

    config: str
    """`TFANetConfig.to_json`."""
    options: dict[str, Any]
    """Options that must be the same when the run goes on."""
    step: int
    """Optimizer steps done, which tells the place in the data too."""
    validated: int
    """Epochs that have been validated."""
    best: float
    """The best mean IoU so far."""
    skipped: int
    """Batches left out because something was not finite."""
    trained: dict[str, Any]
    """`Stepper.state`: model, moving average, optimizer, scaler."""
    rng: list[Tensor]
    """State of torch's CPU generator in each process (stochastic depth draws from it)."""
    cuda_rng: list[Tensor | None]
    """The same of each process's GPU."""

    def save(self, path: Path) -> None:
        """Write to `path` atomically; `UserError` when the disk is full."""
        with atomic_path(path) as temporary:
            try:
                torch.save({"format": FORMAT, **self.__dict__}, temporary)
            except RuntimeError as error:  # what torch's archive writer makes of an OSError
                raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def load_state(path: Path, config: TFANetConfig, options: dict[str, Any]) -> TrainingState:
    """Read a training state and hold it against the run that is to go on.

    Raises `UserError` when the file is missing, damaged, of another kind, or of a run with other settings.
    """
    require_file(path, "training state")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        known = isinstance(values, dict) and values.pop("format", None) == FORMAT
        state = TrainingState(**values) if known else None
    except _DAMAGED as error:
        raise UserError(
            f"training state {path} is damaged or of another kind; begin a new run in another --out"
        ) from error
    if state is None:
        raise UserError(f"{path} is no training state of this version; begin a new run in another --out")
    if TFANetConfig.from_json(state.config) != config:
        raise UserError(f"{path} is a run of another model config; use its preset or another --out")
    # States of before `split_by` was noted: `data` tells their expressions.
    saved = {"split_by": options.get("split_by")} | state.options
    changed = [f"{key} was {saved.get(key)}" for key in options if saved.get(key) != options[key]]
    if changed:
        raise UserError(f"cannot resume {path} with other options: {', '.join(changed)}")
    return state
