"""`tfanet-train`: without arguments, preset `tiny` on the synthetic data on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfanet.console import new_app, run, say

app = new_app("Train a TFANet.")


@app.command()
def train(
    preset_name: Annotated[str, typer.Option("--preset", help="Model sizes: tiny or base.")] = "tiny",
    variant: Annotated[
        str | None, typer.Option(help="Row a to e of the paper's Table 3 instead of the full model.")
    ] = None,
    text_tower: Annotated[
        str | None, typer.Option(help="CLIP of open_clip, such as ViT-L-14-quickgelu [the preset's].")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the square image, a multiple of 32 [the preset's].")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="REFER folder; the synthetic one is made if absent.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog.")] = "refcoco",
    token_length: Annotated[
        int | None, typer.Option(help="Tokens a sentence [22 for refcocog, 17 otherwise].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for checkpoint and log [runs/PRESET].")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 4,
    batch: Annotated[int, typer.Option(min=2)] = 16,
    rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="Peak learning rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1e-2,
    warmup: Annotated[int, typer.Option(min=0, help="Steps of linear warm-up.")] = 200,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Fixes weights and order.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Train on the first N expressions only.")] = None,
    validate: Annotated[int, typer.Option(min=1, help="Validation expressions after each epoch.")] = 300,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load data.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where it is.")] = "auto",
    vmamba_weights: Annotated[
        Path | None, typer.Option(help="Official VMamba classification checkpoint to start from.")
    ] = None,
    clip_weights: Annotated[
        str | None, typer.Option(help="CLIP checkpoint file, or an open_clip pretrained tag.")
    ] = None,
    half_weights: Annotated[
        bool, typer.Option("--half-weights", help="Store the checkpoint in FP16.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the state in --out.")] = False,
) -> None:
    """Train and write model.safetensors, training.pt (for --resume) and log.csv into --out."""
    from tfanet.config import preset
    from tfanet.errors import UserError
    from tfanet.files import require_writable

    chosen = {"text_tower": text_tower, "image_size": image_size}
    config = preset(
        preset_name,
        token_length=token_length or (22 if dataset == "refcocog" else 17),
        variant=variant,
        **{field: value for field, value in chosen.items() if value is not None},
    )
    out = out or Path("runs") / preset_name
    require_writable(out / "model.safetensors")
    if (out / "training.pt").exists() and not resume:
        raise UserError(f"{out} holds a run already; give --resume to go on with it, or another --out")

    import hashlib

    import torch
    from torch.utils.data import Subset

    from tfanet.data.refer import ReferDataset
    from tfanet.data.shapes import DEFAULT_ROOT, ensure_shapes
    from tfanet.data.transforms import TrainingPairs
    from tfanet.model import TFANet
    from tfanet.ops.dispatch import scans_by
    from tfanet.training.loop import TrainingOptions
    from tfanet.training.loop import train as train_loop

    torch.manual_seed(seed)
    model = TFANet(config)
    if not resume:
        if vmamba_weights:
            model.vmamba.load_official(vmamba_weights)
        if clip_weights:
            model.text.load_pretrained(clip_weights)
    if data is None:
        data = DEFAULT_ROOT
        ensure_shapes(data)

    device = _device(device)

    def pairs(split: str) -> TrainingPairs:
        return TrainingPairs(ReferDataset(data, dataset, split), config.image_size, config.token_length)

    whole, validation = pairs("train"), pairs("val")
    training = Subset(whole, range(min(limit or len(whole), len(whole))))
    tokens = whole.tokens[: len(training)].numpy()
    validation = Subset(validation, range(min(validate, len(validation))))
    options = TrainingOptions(
        epochs=epochs, batch=batch, rate=rate, weight_decay=weight_decay, warmup=warmup, seed=seed,
        workers=workers, device=device, half_weights=half_weights,
        data=f"{dataset} {hashlib.sha256(tokens.tobytes()).hexdigest()[:16]}",
    )  # fmt: skip
    parameters = sum(p.numel() for p in model.parameters())
    say(f"{preset_name}: {parameters / 1e6:.2f} M parameters, {len(training)} expressions")
    say(f"on {device}, {scans_by(device.partition(':')[0])}")
    if train_loop(model, training, validation, out, options, resume=resume):
        say(f"wrote {out / 'model.safetensors'}")
        say(f"next: tfanet-eval --engine {out / 'model.safetensors'}")
    else:
        say(
            f"stopped; the state is saved. Go on with: tfanet-train --resume --out {out} and the same options"
        )


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
