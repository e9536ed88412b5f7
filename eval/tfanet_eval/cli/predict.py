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
    maps: Annotated[
        Path | None, typer.Option(help="Write a picture of the maps inside the model here, stage by stage.")
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Open a plan that was built elsewhere.")] = False,
) -> None:
    """Write the picture with the object marked, and its mask (8-bit, 0 and 255) as NAME.mask.png."""
    from tfanet.visualize import mask_image, overlay, save_image

    mask_file = output.with_suffix(".mask.png")
    _check_outputs(image, output, mask_file, maps)
    picture, sentence = _inputs(image, text)

    from tfanet.weights import bundled
    from tfanet_engines import open_engine
    from tfanet_eval.prediction import predict

    engine = engine or bundled("tiny")
    if maps is not None:
        _require_checkpoint(engine)
    with open_engine(engine, trust=trust) as opened:
        mask = predict(opened, picture, sentence) > 0
    save_image(overlay(picture, mask), output)
    save_image(mask_image(mask), mask_file)
    say(f'"{sentence}": {describe(mask)}')
    say(f"wrote {output} and {mask_file}")
    if maps is not None:
        _write_maps(engine, picture, sentence, maps)
    say(f"next: tfanet-eval --engine {engine}")


def _check_outputs(image: Path | None, output: Path, mask_file: Path, maps: Path | None) -> None:
    """`UserError` unless each can be written, and without harm to the picture or to another."""
    from tfanet.visualize import require_image_path

    for file, option in ((output, "--output"), (mask_file, "--output"), (maps, "--maps")):
        if file is None:
            continue
        require_image_path(file)
        if image is not None and file.resolve() == image.resolve():
            raise UserError(f"{file} is the picture itself and would be overwritten; give another {option}")
    if maps is not None and maps.resolve() in (output.resolve(), mask_file.resolve()):
        raise UserError(f"--maps {maps} is a file that --output {output} writes too; give another --maps")


def _require_checkpoint(engine: Path) -> None:
    """`UserError`, naming the checkpoint where it is known, unless `engine` is one."""
    if engine.suffix not in (".onnx", ".plan"):
        return
    from tfanet_eval.reference import find_reference

    made_of, _ = find_reference(engine, None)
    checkpoint = f"--engine {made_of}" if made_of else "as --engine the .safetensors that it was made of"
    raise UserError(f"--maps looks inside the PyTorch model, which {engine} is no longer; give {checkpoint}")


def _write_maps(checkpoint: Path, picture: Image.Image, sentence: str, file: Path) -> None:
    from tfanet.checkpoint import load_model
    from tfanet.visualize import save_image
    from tfanet_eval.maps.sheet import map_sheet
    from tfanet_eval.maps.trace import trace

    found = trace(load_model(checkpoint), picture, sentence)
    save_image(map_sheet(picture, sentence, found), file)
    without = f", without {found.absent}" if found.absent else ""
    say(f"wrote {file}{without}")


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
