"""Write a picture and a sentence as `find_object` takes them: `prepare.py PLAN PICTURE "TEXT" -o NAME`.

NAME.ppm is the picture at the model's size, resized as tfanet does; NAME.tokens holds the tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from tfanet.console import run
from tfanet.data.images import open_image
from tfanet.data.preprocess import resize_image, tokenize
from tfanet.files import atomic_path
from tfanet_engines import Sidecar


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare a picture and a sentence for find_object.")
    parser.add_argument("engine", type=Path, help="the .plan, with its sidecar beside it")
    parser.add_argument("picture", type=Path)
    parser.add_argument("sentence")
    parser.add_argument("-o", "--output", type=Path, default=Path("picture"), help="[%(default)s]")
    options = parser.parse_args()
    config = Sidecar.read(options.engine).model_config()
    (tokens,) = tokenize([options.sentence], config.token_length, strict=True)
    image = Image.fromarray(resize_image(open_image(options.picture), config.image_size))
    with atomic_path(options.output.with_name(options.output.name + ".ppm")) as file:
        image.save(file)
    with atomic_path(options.output.with_name(options.output.name + ".tokens")) as file:
        file.write_text(" ".join(map(str, tokens)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
