"""A training run from options: resolves the recipe, opens the data, builds the model, trains.

run_training(TrainingRequest(preset="tiny", data=Path("data"), options={"epochs": 2, "lr": 1e-3}))
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from tfanet.checkpoint import load_model
from tfanet.config import TFANetConfig, preset
from tfanet.console import say
from tfanet.data.check import require_images
from tfanet.data.packed import PackedImages
from tfanet.data.refer import ReferDataset, ReferFiles, data_options
from tfanet.data.shapes import DEFAULT_ROOT, ensure_shapes
from tfanet.data.transforms import TrainingPairs
from tfanet.errors import UserError
from tfanet.files import require_file, require_writable
from tfanet.model import TFANet
from tfanet.ops.dispatch import scans_by, use_scan_kernel
from tfanet.training.loop import train
from tfanet.training.options import Recipe, find_recipe
from tfanet.training.processes import Processes, join_processes

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
class TrainingData:
    """The samples of each split used, `train` first."""

    samples: dict[str, TrainingPairs]
    split_by: str

    @property
    def identity(self) -> str:
        """Hash of the training expressions' tokens, so that a run is not resumed on other data."""
        return hashlib.sha256(self.samples["train"].tokens.numpy().tobytes()).hexdigest()[:16]


def run_training(request: TrainingRequest, arguments: Sequence[str] | None = None) -> bool:
    """Train and print the next command; returns False if Ctrl-C or SIGTERM stopped the run.

    `arguments` are those of `tfanet-train`, to print the command that resumes the run. Raises `UserError` for
    invalid options and data, and whatever `loop.train` raises.
    """
    name = request.recipe or _default_recipe(request)
    recipe = find_recipe(name)
    options = replace(recipe.options, **request.options)
    dataset = request.dataset or recipe.dataset
    config = _model_config(request, recipe, dataset)
    out = request.out or Path("runs") / name
    resume = _state_to_resume(request, out)
    device = _device(request.device)
    use_scan_kernel(request.scan_kernel)
    model = _initial_model(request, config, options.seed, resumed=resume is not None)
    data = _open_data(request, recipe, dataset, config)
    training = data.samples["train"]
    references = training.references if options.expressions == "one" else None
    with join_processes(device) as (processes, own_device):
        expressions = {split: pairs.expressions for split, pairs in data.samples.items()}
        require_images(expressions, options.skip_broken, verbose=processes.first)
        if processes.first:
            _announce(name, model, training, references, processes, own_device)
        identity = f"{dataset} {data.identity}"
        finished = train(
            model,
            training,
            data.samples["val"],
            out,
            replace(options, device=own_device, split_by=data.split_by, data=identity),
            resume=resume,
            processes=processes,
            splits={split: pairs for split, pairs in data.samples.items() if split != "train"},
            references=references,
        )
        if processes.first and finished:
            say(f"wrote {out / 'model.safetensors'}")
            say(f"next: {evaluation_command(out, request.data, dataset, data.split_by)}")
        elif processes.first:
            command = 'resume="auto"' if arguments is None else resume_command(processes.world, arguments)
            say(f"stopped; the state is saved. Resume with: {command}")
    return finished


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


def _initial_model(request: TrainingRequest, config: TFANetConfig, seed: int, *, resumed: bool) -> TFANet:
    """A model with random weights, and the weights to start from unless the run is `resumed`."""
    torch.manual_seed(seed)
    model = TFANet(config)
    if resumed:
        return model
    if request.start:
        weights, own = load_model(request.start).state_dict(), model.state_dict()
        if weights.keys() != own.keys() or any(weights[name].shape != own[name].shape for name in own):
            raise UserError(
                f"{request.start} is a model of other sizes; give the options that it was trained with"
            )
        model.load_state_dict(weights)
    if request.vmamba_weights:
        model.vmamba.load_official(request.vmamba_weights)
    if request.clip_weights:
        model.text.load_pretrained(request.clip_weights)
    return model


def _open_data(request: TrainingRequest, recipe: Recipe, dataset: str, config: TFANetConfig) -> TrainingData:
    root = ensure_shapes(DEFAULT_ROOT) if request.data is None else request.data
    files = ReferFiles.load(root, dataset, request.split_by)
    packed = PackedImages(request.cache, files, config.image_size) if request.cache else None
    limits = {"train": request.limit, **dict.fromkeys(files.held_out, request.validate or recipe.validate)}
    samples = {
        split: TrainingPairs(
            ReferDataset.of(files, split), config.image_size, config.token_length, limit, packed
        )
        for split, limit in limits.items()
    }
    return TrainingData(samples, files.split_by)


def _announce(
    recipe: str,
    model: TFANet,
    training: TrainingPairs,
    references: list[list[int]] | None,
    processes: Processes,
    device: str,
) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    per_epoch = f" of {len(references)} objects, one of each an epoch" if references else ""
    say(f"{recipe}: {parameters / 1e6:.2f} M parameters, {len(training)} expressions{per_epoch}")
    world = f"{processes.world} processes, " if processes.world > 1 else ""
    say(f"on {world}{device}, {scans_by(device.partition(':')[0])}")


def evaluation_command(out: Path, data: Path | None, dataset: str, split_by: str) -> str:
    """The command that evaluates the saved model on the data it was trained for."""
    command = ["tfanet-eval", "--engine", str(out / "model.safetensors")]
    command += ["--data", str(data)] if data else []
    options = data_options(dataset, split_by)
    command += options[2:] if dataset == "refcoco" else options
    return shlex.join(command)


def resume_command(world: int, arguments: Sequence[str]) -> str:
    """The command that resumes this run: the same `arguments` with `--resume auto`."""
    kept, skip = [], False
    for argument in arguments:
        if not (skip or argument.startswith("--resume")):
            kept.append(argument)
        skip = argument == "--resume"
    command = shlex.join(["tfanet-train", *kept, "--resume", "auto"])
    if world == 1:
        return command
    local = os.environ.get("LOCAL_WORLD_SIZE", str(world))
    nodes = "" if int(local) == world else f"--nnodes {world // int(local)} [the same rendezvous] "
    return f"torchrun {nodes}--nproc-per-node {local} --no-python {command}"


def _device(name: str) -> str:
    """`auto` as cuda or cpu, other names as they are. Raises `UserError` for an unknown or absent device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (":" in name and not index.isdigit())):
        raise UserError(f"unknown device {name!r}; give cpu, cuda, cuda:N or auto")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"no CUDA device {index or 0} here; use --device cpu")
    return name
