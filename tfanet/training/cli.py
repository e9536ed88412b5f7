"""`tfanet-train`: without arguments, preset `tiny` on the synthetic data."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tfanet.console import new_app, run, say

app = new_app("Train a TFANet.", panels=True)

_MODEL, _DATA, _RATE = "Model", "Data", "Optimisation"
_SPEED, _TROUBLE = "Speed and memory", "Interruption and trouble"


def _option(help_text: str, panel: str, *names: str, **bounds: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **bounds)


@app.command()
def train(
    recipe: Annotated[
        str | None,
        _option("tiny, paper-refcoco, paper-refcoco+ or paper-gref: sets all options not given.", "Recipe"),
    ] = None,
    out: Annotated[
        Path | None, _option("Folder for checkpoints and records [runs/RECIPE].", "Recipe")
    ] = None,
    seed: Annotated[int, _option("Fixes weights and order.", "Recipe", min=0, max=2**31 - 1)] = 0,
    preset_name: Annotated[
        str | None, _option("Model sizes: tiny or base [paper: base].", _MODEL, "--preset")
    ] = None,
    variant: Annotated[
        str | None, _option("Row a to e of the paper's Table 3 instead of the full model.", _MODEL)
    ] = None,
    text_tower: Annotated[
        str | None, _option("CLIP of open_clip, such as ViT-L-14-quickgelu [the preset's].", _MODEL)
    ] = None,
    image_size: Annotated[
        int | None, _option("Side of the square image, a multiple of 32 [paper: 480].", _MODEL)
    ] = None,
    token_length: Annotated[
        int | None, _option("Tokens a sentence [paper: 17; 22 for refcocog].", _MODEL)
    ] = None,
    start: Annotated[
        Path | None, _option("Checkpoint of a TFANet of these sizes whose weights to begin with.", _MODEL)
    ] = None,
    vmamba_weights: Annotated[
        Path | None, _option("Official VMamba classification checkpoint to start from.", _MODEL)
    ] = None,
    clip_weights: Annotated[
        str | None, _option("CLIP checkpoint file, or an open_clip pretrained tag.", _MODEL)
    ] = None,
    half_weights: Annotated[
        bool | None, _option("Store the checkpoints in FP16.", _MODEL, "--half-weights")
    ] = None,
    data: Annotated[Path | None, _option("REFER folder; the synthetic one is made if absent.", _DATA)] = None,
    dataset: Annotated[str | None, _option("refcoco, refcoco+ or refcocog [the recipe's].", _DATA)] = None,
    split_by: Annotated[
        str | None, _option("Refs file: unc, umd or google [unc; umd for refcocog].", _DATA)
    ] = None,
    cache: Annotated[
        Path | None, _option("Folder of tfanet-data pack: nothing is decoded while it trains.", _DATA)
    ] = None,
    limit: Annotated[int | None, _option("Train on the first N expressions only.", _DATA, min=1)] = None,
    sentences: Annotated[
        str | None, _option("Of each reference an epoch: one, drawn anew [one], or all [tiny].", _DATA)
    ] = None,
    validate: Annotated[
        int | None, _option("Expressions a split that are measured [paper: all; tiny: 300].", _DATA, min=1)
    ] = None,
    workers: Annotated[
        int | None, _option("Processes that load data, for each GPU [0].", _DATA, min=0, max=256)
    ] = None,
    epochs: Annotated[int | None, _option("[paper: 50; tiny: 4]", _RATE, min=1)] = None,
    batch: Annotated[
        int | None, _option("Pairs a step, over all GPUs [paper: 8; tiny: 16].", _RATE, min=2)
    ] = None,
    rate: Annotated[
        float | None, _option("Peak learning rate [paper's recipe: 5e-5; tiny: 1e-3].", _RATE, min=0.0)
    ] = None,
    backbone_share: Annotated[
        float | None, _option("The image encoder's share of --rate [0.5; tiny: 1].", _RATE, min=0.0)
    ] = None,
    text_share: Annotated[
        float | None, _option("The text encoder's share of --rate [0.5; tiny: 1].", _RATE, min=0.0)
    ] = None,
    weight_decay: Annotated[float | None, _option("[0.01]", _RATE, min=0.0, max=1.0)] = None,
    warmup: Annotated[int | None, _option("Steps of linear warm-up [1000; tiny: 200].", _RATE, min=0)] = None,
    decay_from: Annotated[
        float | None,
        _option("Epoch from which the rate falls to zero [half of them; paper: 25].", _RATE, min=0.0),
    ] = None,
    clip: Annotated[float | None, _option("Largest norm of the gradient [1].", _RATE, min=0.0)] = None,
    ema: Annotated[
        float | None,
        _option("Decay of the weights' average, 0 for none [0.9999; tiny: 0].", _RATE, min=0.0, max=1.0),
    ] = None,
    freeze: Annotated[str, _option("Parts not to train: backbone, text, or both with a comma.", _RATE)] = "",
    device: Annotated[str, _option("cpu, cuda, or auto: cuda where it is.", _SPEED)] = "auto",
    precision: Annotated[
        str | None,
        _option("fp32, bf16, fp16, or auto: bf16 where the GPU has it [auto; tiny: fp32].", _SPEED),
    ] = None,
    scan_kernel: Annotated[
        str, _option("Scans on a GPU: triton, mamba-ssm, or auto: triton where installed.", _SPEED)
    ] = "auto",
    accumulate: Annotated[
        int | None, _option("Parts a GPU computes its pairs in [1].", _SPEED, min=1)
    ] = None,
    checkpointing: Annotated[
        bool | None,
        _option("Compute activations of the image encoder twice: less memory.", _SPEED, "--checkpointing"),
    ] = None,
    compile_model: Annotated[bool | None, _option("Use torch.compile.", _SPEED, "--compile")] = None,
    channels_last: Annotated[
        bool | None, _option("Memory layout of feature maps.", _SPEED, "--channels-last/--channels-first")
    ] = None,
    resume: Annotated[
        str | None,
        _option("auto: go on with the run in --out, or begin it; or a training state's file.", _TROUBLE),
    ] = None,
    save_every: Annotated[int | None, _option("Steps between two savings [500].", _TROUBLE, min=1)] = None,
    skip_nonfinite: Annotated[
        int | None,
        _option("Batches with a NaN that are left out before it stops [20; tiny: 0].", _TROUBLE, min=0),
    ] = None,
    skip_broken: Annotated[
        int | None, _option("Unreadable pairs replaced before it stops [100; tiny: 0].", _TROUBLE, min=0)
    ] = None,
) -> None:
    """Train and write model.safetensors, best.safetensors, training.pt and the curves into --out."""
    from tfanet.training.options import find_recipe

    if recipe is None:
        papers = {"refcoco+": "paper-refcoco+", "refcocog": "paper-gref"}
        recipe = "tiny" if preset_name in (None, "tiny") else papers.get(dataset or "", "paper-refcoco")
    chosen = find_recipe(recipe)
    given = {
        "epochs": epochs, "batch": batch, "sentences": sentences, "rate": rate,
        "backbone_share": backbone_share, "text_share": text_share, "weight_decay": weight_decay,
        "warmup": warmup, "decay_from": decay_from, "clip": clip, "ema": ema,
        "precision": precision, "accumulate": accumulate,
        "checkpointing": checkpointing, "compile": compile_model, "channels_last": channels_last,
        "save_every": save_every, "skip_nonfinite": skip_nonfinite, "skip_broken": skip_broken,
        "workers": workers, "half_weights": half_weights,
    }  # fmt: skip
    from dataclasses import replace

    from tfanet.config import preset
    from tfanet.errors import UserError
    from tfanet.files import require_file, require_writable

    options = replace(
        chosen.options,
        seed=seed,
        freeze=tuple(sorted(part.strip() for part in freeze.split(",") if part.strip())),
        **{name: value for name, value in given.items() if value is not None},
    )
    dataset = dataset or chosen.dataset
    fields = {"text_tower": text_tower, "image_size": image_size}
    config = preset(
        preset_name or chosen.preset,
        token_length=token_length or (22 if dataset == "refcocog" else 17),
        variant=variant,
        **{field: value for field, value in fields.items() if value is not None},
    )
    out = out or Path("runs") / recipe
    require_writable(out / "model.safetensors")
    state = out / "training.pt"
    if state.exists() and resume is None:
        raise UserError(f"{out} holds a run already; give --resume auto to go on with it, or another --out")
    if resume == "auto":
        saved = state if state.exists() else None
    else:
        saved = None if resume is None else require_file(resume, "training state")

    import hashlib

    import torch

    from tfanet.checkpoint import load_model
    from tfanet.data.check import require_pictures
    from tfanet.data.packed import PackedPictures
    from tfanet.data.refer import ReferDataset, ReferFiles
    from tfanet.data.shapes import DEFAULT_ROOT, ensure_shapes
    from tfanet.data.transforms import TrainingPairs
    from tfanet.model import TFANet
    from tfanet.ops.dispatch import scans_by, use_scan_kernel
    from tfanet.training.loop import train as train_loop
    from tfanet.training.processes import joined

    device = _device(device)
    use_scan_kernel(scan_kernel)
    torch.manual_seed(seed)
    model = TFANet(config)
    if not saved:
        if start:
            begun, own = load_model(start).state_dict(), model.state_dict()
            if begun.keys() != own.keys() or any(begun[name].shape != own[name].shape for name in own):
                raise UserError(f"{start} is a model of other sizes; give the options that it was made with")
            model.load_state_dict(begun)
        if vmamba_weights:
            model.vmamba.load_official(vmamba_weights)
        if clip_weights:
            model.text.load_pretrained(clip_weights)
    measured = validate or chosen.validate

    used: dict[str, TrainingPairs] = {}
    files = ReferFiles.load(ensure_shapes(DEFAULT_ROOT) if data is None else data, dataset, split_by)
    split_by, names = files.split_by, files.held_out
    evaluation = _evaluation_command(out, data, dataset, split_by)
    packed = PackedPictures(cache, files, config.image_size) if cache else None
    for split, count in {"train": limit, **dict.fromkeys(names, measured)}.items():
        source = ReferDataset.of(files, split)
        used[split] = TrainingPairs(source, config.image_size, config.token_length, count, packed)
    del files  # it holds every annotation, most of which no expression speaks of
    training, splits = used["train"], {name: used[name] for name in names}
    references = training.references if options.sentences == "one" else None
    tokens = training.tokens.numpy()
    identity = f"{dataset} {hashlib.sha256(tokens.tobytes()).hexdigest()[:16]}"
    with joined(device) as (processes, own_device):
        wanted = {split: pairs.expressions for split, pairs in used.items()}
        require_pictures(wanted, options.skip_broken, tell=processes.first)
        if processes.first:
            parameters = sum(p.numel() for p in model.parameters())
            of = f" of {len(references)} objects, one of each an epoch" if references else ""
            say(f"{recipe}: {parameters / 1e6:.2f} M parameters, {len(training)} expressions{of}")
            many = f"{processes.world} processes, " if processes.world > 1 else ""
            say(f"on {many}{own_device}, {scans_by(own_device.partition(':')[0])}")
        options = replace(options, device=own_device, split_by=split_by, data=identity)
        finished = train_loop(
            model,
            training,
            splits["val"],
            out,
            options,
            resume=saved,
            processes=processes,
            splits=splits,
            references=references,
        )
        if processes.first and finished:
            say(f"wrote {out / 'model.safetensors'}")
            say(f"next: {evaluation}")
        elif processes.first:
            say(f"stopped; the state is saved. Go on with: {_resume_command(processes.world, sys.argv[1:])}")


def _evaluation_command(out: Path, data: Path | None, dataset: str, split_by: str) -> str:
    """The command that measures the stored model on the data it was trained for."""
    from tfanet.data.refer import data_options

    command = ["tfanet-eval", "--engine", str(out / "model.safetensors")]
    command += ["--data", str(data)] if data else []
    named = data_options(dataset, split_by)
    command += named[2:] if dataset == "refcoco" else named
    return shlex.join(command)


def _resume_command(world: int, arguments: list[str]) -> str:
    """The command that goes on with this run: its own, with `--resume auto`."""
    kept, skip = [], False
    for argument in arguments:
        if not (skip or argument.startswith("--resume")):
            kept.append(argument)
        skip = argument == "--resume"
    command = shlex.join(["tfanet-train", *kept, "--resume", "auto"])
    if world == 1:
        return command
    here = os.environ.get("LOCAL_WORLD_SIZE", str(world))
    nodes = "" if int(here) == world else f"--nnodes {world // int(here)} [the same rendezvous] "
    return f"torchrun {nodes}--nproc-per-node {here} --no-python {command}"


def _device(name: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> a device that is there; `UserError` for anything else."""
    import torch

    from tfanet.errors import UserError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (":" in name and not index.isdigit())):
        raise UserError(f"unknown device {name!r}; give cpu, cuda, cuda:N or auto")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"no CUDA device {index or 0} here; use --device cpu")
    return name


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
