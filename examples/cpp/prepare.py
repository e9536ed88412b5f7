"""Preprocess an image and an expression for `find_object`: `prepare.py PLAN IMAGE "EXPRESSION" -o NAME`.

NAME.ppm is the image at the model's size, resized as in training; NAME.tokens has the tokens.
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
    parser = argparse.ArgumentParser(description="Preprocess an image and an expression for find_object.")
    parser.add_argument("engine", type=Path, help="the .plan, with its sidecar next to it")
    parser.add_argument("image", type=Path)
    parser.add_argument("expression")
    parser.add_argument("-o", "--output", type=Path, default=Path("picture"), help="[%(default)s]")
    options = parser.parse_args()
    config = Sidecar.read(options.engine).model_config()
    (tokens,) = tokenize([options.expression], config.token_length, strict=True)
    image = Image.fromarray(resize_image(open_image(options.image), config.image_size))
    with atomic_path(options.output.with_name(options.output.name + ".ppm")) as file:
        image.save(file)
    with atomic_path(options.output.with_name(options.output.name + ".tokens")) as file:
        file.write_text(" ".join(map(str, tokens)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
