"""`tfanet-predict IMAGE "TEXT"`: the mask of one object; without arguments, on a synthetic image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfanet.console import new_app, run, say
from tfanet.errors import UserError
from tfanet_eval.cli.options import Trust

if TYPE_CHECKING:
    from PIL import Image

app = new_app("Segment the object that an expression describes.")


@app.command()
def predict_mask(
    image: Annotated[Path | None, typer.Argument(help="Image file [a synthetic image].")] = None,
    text: Annotated[str | None, typer.Argument(help="The object, in a few English words.")] = None,
    engine: Annotated[
        Path | None, typer.Option(help=".safetensors, .onnx or .plan [the bundled tiny checkpoint].")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Overlay to write; the mask goes to NAME.mask.png.")
    ] = Path("out.png"),
    maps: Annotated[
        Path | None, typer.Option(help="Write an image of the model's feature maps, stage by stage, here.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Write the image with the object marked, and the mask (8-bit, 0 and 255) as NAME.mask.png."""
    from tfanet.visualize import mask_image, overlay, save_image

    mask_file = output.with_suffix(".mask.png")
    _check_outputs(image, output, mask_file, maps)
    pil_image, expression = _inputs(image, text)

    from tfanet.weights import bundled
    from tfanet_engines import open_engine
    from tfanet_eval.prediction import describe_mask, predict

    engine = engine or bundled("tiny")
    if maps is not None:
        _require_checkpoint(engine)
    with open_engine(engine, trust=trust) as opened:
        mask = predict(opened, pil_image, expression) > 0
    save_image(overlay(pil_image, mask), output)
    save_image(mask_image(mask), mask_file)
    say(f'"{expression}": {describe_mask(mask)}')
    say(f"wrote {output} and {mask_file}")
    if maps is not None:
        _write_maps(engine, pil_image, expression, maps)
    say(f"next: tfanet-eval --engine {engine}")


def _check_outputs(image: Path | None, output: Path, mask_file: Path, maps: Path | None) -> None:
    """Raise `UserError` unless each file can be written and overwrites neither input nor output."""
    from tfanet.visualize import require_image_path

    for file, option in ((output, "--output"), (mask_file, "--output"), (maps, "--maps")):
        if file is None:
            continue
        require_image_path(file)
        if image is not None and file.resolve() == image.resolve():
            raise UserError(f"{file} is the input image and would be overwritten; give another {option}")
    if maps is not None and maps.resolve() in (output.resolve(), mask_file.resolve()):
        raise UserError(f"--maps {maps} is also written by --output {output}; give another --maps")


def _require_checkpoint(engine: Path) -> None:
    """Raise `UserError`, naming the checkpoint if it is known, unless `engine` is a checkpoint."""
    if engine.suffix not in (".onnx", ".plan"):
        return
    from tfanet_eval.reference import find_reference

    checkpoint, _ = find_reference(engine, None)
    advice = f"--engine {checkpoint}" if checkpoint else "--engine with the .safetensors it was made from"
    raise UserError(f"--maps needs the PyTorch model, which {engine} does not contain; give {advice}")


def _write_maps(checkpoint: Path, image: Image.Image, expression: str, file: Path) -> None:
    from tfanet.checkpoint import load_model
    from tfanet.visualize import save_image
    from tfanet_eval.maps.sheet import map_sheet
    from tfanet_eval.maps.trace import trace

    maps = trace(load_model(checkpoint), image, expression)
    save_image(map_sheet(image, expression, maps), file)
    without = f", without {maps.absent}" if maps.absent else ""
    say(f"wrote {file}{without}")


def _inputs(image: Path | None, text: str | None) -> tuple[Image.Image, str]:
    """The image and the expression as given, or a synthetic pair if no image is given."""
    if image is None:
        from tfanet.data.shapes import render_pair

        pil_image, expression, _ = render_pair(seed=0, index=0)
        return pil_image, expression
    if text is None:
        raise UserError(f'the expression is missing; for example: tfanet-predict {image} "the red circle"')
    if not text.strip():
        raise UserError("the expression is empty; describe the object in words")
    from tfanet.data.images import open_image

    return open_image(image), text


def main() -> None:
    run(app)
