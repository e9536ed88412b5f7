"""The training state in its own file: everything needed to resume a run exactly."""

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
"""What `torch.load` raises for truncated or damaged files."""
_RENAMED = {"rate": "lr", "sentences": "expressions"}
"""Options by their names in states of version 0.1."""


@dataclass
class TrainingState:
    """Model, optimizer and position of an unfinished training run."""

    config: str
    """`TFANetConfig.to_json`."""
    options: dict[str, Any]
    """Options that a resumed run must not change."""
    step: int
    """Optimizer steps done, which also give the position in the data."""
    validated: int
    """Epochs that have been validated."""
    best: float
    """The best mean IoU so far."""
    skipped: int
    """Batches skipped because something was not finite."""
    trained: dict[str, Any]
    """`Stepper.state`: model, moving average, optimizer, loss scaler."""
    rng: list[Tensor]
    """State of torch's CPU generator in each process (stochastic depth uses it)."""
    cuda_rng: list[Tensor | None]
    """The same of each process's GPU."""

    def save(self, path: Path) -> None:
        """Write to `path` atomically. Raises `UserError` if the disk is full."""
        with atomic_path(path) as temporary:
            try:
                torch.save({"format": FORMAT, **self.__dict__}, temporary)
            except RuntimeError as error:  # torch's archive writer turns an OSError into this
                raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def load_state(path: Path, config: TFANetConfig, options: dict[str, Any]) -> TrainingState:
    """Read a training state and check that it belongs to a run with this config and these options.

    Raises `UserError` if the file is missing, damaged, not a training state, or of a run with other settings.
    """
    require_file(path, "training state")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        known = isinstance(values, dict) and values.pop("format", None) == FORMAT
        state = TrainingState(**values) if known else None
    except _DAMAGED as error:
        raise UserError(
            f"training state {path} is damaged or not a training state; start a new run with another --out"
        ) from error
    if state is None:
        raise UserError(f"{path} is not a training state of this version; start a new run with another --out")
    if TFANetConfig.from_json(state.config) != config:
        raise UserError(f"{path} has another model config; use its --preset or another --out")
    # Older states lack `split_by`; their `data` identifies the expressions.
    saved = {"split_by": options.get("split_by")}
    saved |= {_RENAMED.get(name, name): value for name, value in state.options.items()}
    changed = [f"{key} was {saved.get(key)}" for key in options if saved.get(key) != options[key]]
    if changed:
        raise UserError(f"cannot resume {path} with other options: {', '.join(changed)}")
    return state
