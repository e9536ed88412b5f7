"""A training run: opens the data, builds the model, trains, prints the next command.

run_training(TrainingRequest(preset="tiny", data=Path("data"), options={"epochs": 2, "lr": 1e-3}))
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tfanet.checkpoint import load_model
from tfanet.config import TFANetConfig
from tfanet.console import say
from tfanet.data.check import require_images
from tfanet.data.packed import PackedImages
from tfanet.data.refer import ReferDataset, ReferFiles, data_options
from tfanet.data.shapes import DEFAULT_ROOT, ensure_shapes
from tfanet.data.transforms import TrainingPairs
from tfanet.errors import UserError
from tfanet.model import TFANet
from tfanet.ops.dispatch import scans_by, use_scan_kernel
from tfanet.training.loop import train
from tfanet.training.processes import Processes, join_processes
from tfanet.training.request import ResolvedRequest, TrainingRequest, resolve


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
    resolved = resolve(request)
    options, dataset, out = resolved.options, resolved.dataset, resolved.out
    device = _device(request.device)
    use_scan_kernel(request.scan_kernel)
    model = _initial_model(request, resolved.config, options.seed, resumed=resolved.resume is not None)
    data = _open_data(request, resolved)
    training = data.samples["train"]
    references = training.references if options.expressions == "one" else None
    with join_processes(device) as (processes, own_device):
        expressions = {split: pairs.expressions for split, pairs in data.samples.items()}
        require_images(expressions, options.skip_broken, verbose=processes.first)
        if processes.first:
            _announce(resolved.name, model, training, references, processes, own_device)
        identity = f"{dataset} {data.identity}"
        finished = train(
            model,
            training,
            data.samples["val"],
            out,
            replace(options, device=own_device, split_by=data.split_by, data=identity),
            resume=resolved.resume,
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


def _open_data(request: TrainingRequest, resolved: ResolvedRequest) -> TrainingData:
    config = resolved.config
    root = ensure_shapes(DEFAULT_ROOT) if request.data is None else request.data
    files = ReferFiles.load(root, resolved.dataset, request.split_by)
    packed = PackedImages(request.cache, files, config.image_size) if request.cache else None
    limits = {
        "train": request.limit,
        **dict.fromkeys(files.held_out, request.validate or resolved.recipe.validate),
    }
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
    per_epoch = f" of {len(references)} objects, one of each per epoch" if references else ""
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
