"""What to train: a request, and the recipe, options and model config that it resolves to.

Without PyTorch, so that a mistake in an option is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tfanet.config import TFANetConfig, preset
from tfanet.errors import UserError
from tfanet.files import require_file, require_writable
from tfanet.training.options import Recipe, TrainingOptions, find_recipe

_PAPER_RECIPES = {"refcoco+": "paper-refcoco+", "refcocog": "paper-gref"}


@dataclass(frozen=True)
class TrainingRequest:
    """What to train, and on which data. None is the recipe's value; see `tfanet-train --help`."""

    recipe: str | None = None
    """None: tiny, or with another `preset` the paper's recipe for `dataset`."""
    out: Path | None = None
    """None: runs/RECIPE."""
    preset: str | None = None
    variant: str | None = None
    text_tower: str | None = None
    image_size: int | None = None
    token_length: int | None = None
    start: Path | None = None
    """Checkpoint of a TFANet with the same sizes, to start from."""
    vmamba_weights: Path | None = None
    clip_weights: str | None = None
    data: Path | None = None
    """None: the synthetic data set, which is made if it is absent."""
    dataset: str | None = None
    split_by: str | None = None
    cache: Path | None = None
    limit: int | None = None
    validate: int | None = None
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    scan_kernel: str = "auto"
    """One of `tfanet.ops.dispatch.SCAN_KERNELS`."""
    resume: str | None = None
    """auto, or the file of a training state."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainingOptions` that replace the recipe's."""

    @classmethod
    def from_options(cls, values: Mapping[str, Any]) -> TrainingRequest:
        """A request from values by field name, of this class or of `TrainingOptions`; None is not given."""
        names = {item.name for item in fields(cls)}
        own = {name: value for name, value in values.items() if name in names}
        options = {n: value for n, value in values.items() if n not in names and value is not None}
        return cls(**own, options=options)


@dataclass(frozen=True)
class ResolvedRequest:
    """A request with the recipe's values in place of None."""

    name: str
    """Of the recipe."""
    recipe: Recipe
    options: TrainingOptions
    dataset: str
    config: TFANetConfig
    out: Path
    resume: Path | None
    """The training state to resume from."""


def resolve(request: TrainingRequest) -> ResolvedRequest:
    """Raises `UserError` for invalid options, an unwritable `out`, and one that contains a run already."""
    name = request.recipe or _default_recipe(request)
    recipe = find_recipe(name)
    options = replace(recipe.options, **request.options)
    dataset = request.dataset or recipe.dataset
    out = request.out or Path("runs") / name
    return ResolvedRequest(
        name=name,
        recipe=recipe,
        options=options,
        dataset=dataset,
        config=_model_config(request, recipe, dataset),
        out=out,
        resume=_state_to_resume(request, out),
    )


def _default_recipe(request: TrainingRequest) -> str:
    if request.preset in (None, "tiny"):
        return "tiny"
    return _PAPER_RECIPES.get(request.dataset or "", "paper-refcoco")


def _model_config(request: TrainingRequest, recipe: Recipe, dataset: str) -> TFANetConfig:
    fields = {"text_tower": request.text_tower, "image_size": request.image_size}
    return preset(
        request.preset or recipe.preset,
        token_length=request.token_length or (22 if dataset == "refcocog" else 17),
        variant=request.variant,
        **{name: value for name, value in fields.items() if value is not None},
    )


def _state_to_resume(request: TrainingRequest, out: Path) -> Path | None:
    """The training state to resume from; `UserError` if `out` is not writable or contains a run already."""
    require_writable(out / "model.safetensors")
    state = out / "training.pt"
    if request.resume is None:
        if state.exists():
            raise UserError(
                f"{out} contains a run already; resume it with --resume auto, or give another --out"
            )
        return None
    if request.resume == "auto":
        return state if state.exists() else None
    return require_file(request.resume, "training state")
