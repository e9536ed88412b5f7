"""`tfanet-predict IMAGE "TEXT"`: the mask of one object; without arguments, on a synthetic picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfanet.console import new_app, run, say
from tfanet.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

app = new_app("Find the object that a sentence describes.")


@app.command()
def predict_mask(
    image: Annotated[Path | None, typer.Argument(help="Picture file [a synthetic picture].")] = None,
    text: Annotated[str | None, typer.Argument(help="What to find, in a few English words.")] = None,
    engine: Annotated[
        Path | None, typer.Option(help=".safetensors, .onnx or .plan [the bundled tiny checkpoint].")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Overlay to write; the mask goes beside it.")
    ] = Path("out.png"),
) -> None:
    """Write the picture with the object marked, and its mask (8-bit, 0 and 255) as NAME.mask.png."""
    from tfanet.pictures import mask_picture, overlay, require_picture, save_picture

    mask_file = output.with_suffix(".mask.png")
    for file in (output, mask_file):
        require_picture(file)
        if image is not None and file.resolve() == image.resolve():
            raise UserError(f"{file} is the picture itself and would be overwritten; give another --output")
    picture, sentence = _inputs(image, text)

    from tfanet.weights import bundled
    from tfanet_engines import open_engine
    from tfanet_eval.prediction import predict

    engine = engine or bundled("tiny")
    with open_engine(engine) as opened:
        mask = predict(opened, picture, sentence) > 0
    save_picture(overlay(picture, mask), output)
    save_picture(mask_picture(mask), mask_file)
    say(f'"{sentence}": {describe(mask)}')
    say(f"wrote {output} and {mask_file}")
    say(f"next: tfanet-eval --engine {engine}")


def _inputs(image: Path | None, text: str | None) -> tuple[Image.Image, str]:
    """Picture and sentence as given, or both from the synthetic data where no picture is named."""
    if image is None:
        from tfanet.data.shapes import render_pair

        picture, sentence, _ = render_pair(seed=0, index=0)
        return picture, sentence
    if text is None:
        raise UserError(f'say what to find, for example: tfanet-predict {image} "the red circle"')
    if not text.strip():
        raise UserError("the sentence is empty; describe the object in words")
    from tfanet.data.images import open_image

    return open_image(image), text


def describe(mask: np.ndarray) -> str:
    """Share of the picture and bounding box of a mask bool `[H, W]`, in words."""
    import numpy as np

    height, width = mask.shape
    if not mask.any():
        return f"nothing found in {width} x {height} pixels"
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = f"x {columns[0]}..{columns[-1]}, y {rows[0]}..{rows[-1]}"
    return f"{100 * mask.mean():.2f} % of {width} x {height} pixels, box {box}"


def main() -> None:
    run(app)
