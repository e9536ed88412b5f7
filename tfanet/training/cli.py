"""`tfanet-train`: without arguments, preset `tiny` on the synthetic data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from tfanet.console import deprecated_options, new_app, run

app = new_app("Train a TFANet.", panels=True)

_RECIPE, _MODEL, _DATA, _OPTIMISATION = "Recipe", "Model", "Data", "Optimisation"
_SPEED, _FAULTS = "Speed and memory", "Interruption and faults"


def _option(help_text: str, panel: str, *names: str, **bounds: Any) -> Any:
    """`help_text` may have defaults in brackets, which rich would read as markup."""
    return typer.Option(*names, help=escape(help_text), rich_help_panel=panel, **bounds)


@app.command(cls=deprecated_options({"--rate": "--lr", "--sentences": "--expressions"}))
def train(
    recipe: Annotated[
        str | None,
        _option("tiny, paper-refcoco, paper-refcoco+ or paper-gref: the defaults of all options.", _RECIPE),
    ] = None,
    out: Annotated[Path | None, _option("Folder for checkpoints and records [runs/RECIPE].", _RECIPE)] = None,
    seed: Annotated[int, _option("Seed of weights and sample order.", _RECIPE, min=0, max=2**31 - 1)] = 0,
    preset: Annotated[str | None, _option("Model sizes: tiny or base [paper: base].", _MODEL)] = None,
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
        int | None, _option("Tokens per expression [paper: 17; 22 for refcocog].", _MODEL)
    ] = None,
    start: Annotated[
        Path | None, _option("Checkpoint of a TFANet of the same sizes to start from.", _MODEL)
    ] = None,
    vmamba_weights: Annotated[
        Path | None, _option("Official VMamba classification checkpoint to start from.", _MODEL)
    ] = None,
    clip_weights: Annotated[
        str | None, _option("CLIP checkpoint file, or an open_clip pretrained tag.", _MODEL)
    ] = None,
    half_weights: Annotated[
        bool | None, _option("Save the checkpoints in FP16.", _MODEL, "--half-weights")
    ] = None,
    data: Annotated[
        Path | None, _option("REFER folder [the synthetic data set, made if absent].", _DATA)
    ] = None,
    dataset: Annotated[str | None, _option("refcoco, refcoco+ or refcocog [the recipe's].", _DATA)] = None,
    split_by: Annotated[
        str | None, _option("Refs file: unc, umd or google [unc; umd for refcocog].", _DATA)
    ] = None,
    cache: Annotated[
        Path | None, _option("Folder of tfanet-data pack: no image is decoded in training.", _DATA)
    ] = None,
    limit: Annotated[int | None, _option("Train on the first N expressions only.", _DATA, min=1)] = None,
    expressions: Annotated[
        str | None, _option("Per reference and epoch: one at random [one], or all [tiny].", _DATA)
    ] = None,
    validate: Annotated[
        int | None, _option("Expressions per split to evaluate [paper: all; tiny: 300].", _DATA, min=1)
    ] = None,
    workers: Annotated[
        int | None, _option("Data loader processes per GPU [0].", _DATA, min=0, max=256)
    ] = None,
    epochs: Annotated[int | None, _option("[paper: 50; tiny: 4]", _OPTIMISATION, min=1)] = None,
    batch: Annotated[
        int | None, _option("Samples per step, over all GPUs [paper: 8; tiny: 16].", _OPTIMISATION, min=2)
    ] = None,
    lr: Annotated[
        float | None,
        _option("Peak learning rate [paper's recipe: 5e-5; tiny: 1e-3].", _OPTIMISATION, min=0.0),
    ] = None,
    backbone_share: Annotated[
        float | None,
        _option("Learning rate factor of the image encoder [0.5; tiny: 1].", _OPTIMISATION, min=0.0),
    ] = None,
    text_share: Annotated[
        float | None,
        _option("Learning rate factor of the text encoder [0.5; tiny: 1].", _OPTIMISATION, min=0.0),
    ] = None,
    weight_decay: Annotated[float | None, _option("[0.01]", _OPTIMISATION, min=0.0, max=1.0)] = None,
    warmup: Annotated[
        int | None, _option("Steps of linear warm-up [1000; tiny: 200].", _OPTIMISATION, min=0)
    ] = None,
    decay_from: Annotated[
        float | None,
        _option(
            "Epoch from which the learning rate falls to zero [half of them; paper: 25].",
            _OPTIMISATION,
            min=0.0,
        ),
    ] = None,
    clip: Annotated[float | None, _option("Maximum gradient norm [1].", _OPTIMISATION, min=0.0)] = None,
    ema: Annotated[
        float | None,
        _option(
            "Decay of the weights' moving average; 0: none [0.9999; tiny: 0].",
            _OPTIMISATION,
            min=0.0,
            max=1.0,
        ),
    ] = None,
    freeze: Annotated[
        str, _option("Parts to freeze: backbone, text, or both with a comma.", _OPTIMISATION)
    ] = "",
    device: Annotated[str, _option("cpu, cuda, or auto: cuda if available.", _SPEED)] = "auto",
    precision: Annotated[
        str | None,
        _option("fp32, bf16, fp16, or auto: bf16 if the GPU supports it [auto; tiny: fp32].", _SPEED),
    ] = None,
    scan_kernel: Annotated[
        str, _option("Scans on a GPU: triton, mamba-ssm, or auto: triton if installed.", _SPEED)
    ] = "auto",
    accumulate: Annotated[int | None, _option("Gradient accumulation steps [1].", _SPEED, min=1)] = None,
    checkpointing: Annotated[
        bool | None,
        _option("Recompute the image encoder's activations: less memory.", _SPEED, "--checkpointing"),
    ] = None,
    compile: Annotated[bool | None, _option("Use torch.compile.", _SPEED, "--compile")] = None,
    channels_last: Annotated[
        bool | None, _option("Memory layout of feature maps.", _SPEED, "--channels-last/--channels-first")
    ] = None,
    resume: Annotated[
        str | None,
        _option("auto: resume the run in --out, or start it; or a training state's file.", _FAULTS),
    ] = None,
    save_every: Annotated[
        int | None, _option("Steps between two saved training states [500].", _FAULTS, min=1)
    ] = None,
    skip_nonfinite: Annotated[
        int | None, _option("Batches with a NaN to skip before the run fails [20; tiny: 0].", _FAULTS, min=0)
    ] = None,
    skip_broken: Annotated[
        int | None,
        _option("Unreadable samples to replace before the run fails [100; tiny: 0].", _FAULTS, min=0),
    ] = None,
) -> None:
    """Train and write model.safetensors, best.safetensors, training.pt and the curves into --out."""
    values: dict[str, Any] = {**locals()}
    values["freeze"] = tuple(sorted(part.strip() for part in freeze.split(",") if part.strip()))

    from tfanet.training.request import TrainingRequest, resolve

    request = TrainingRequest.from_options(values)
    resolve(request)  # a mistake is reported before PyTorch is imported, which takes seconds

    from tfanet.training.run import run_training

    run_training(request, sys.argv[1:])


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
