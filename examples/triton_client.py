"""Ask a Triton server for a mask: `python triton_client.py PICTURE "the red mug on the left" -o mask.png`.

The server runs a repository of `tfanet-export triton`. Needs: pip install "tritonclient[http]" pillow
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException


def main() -> int:
    parser = argparse.ArgumentParser(description="Find the object that a sentence describes.")
    parser.add_argument("picture", type=Path, help="JPEG, PNG or another file that Pillow reads")
    parser.add_argument("sentence", help="what to find")
    parser.add_argument("-o", "--output", type=Path, default=Path("mask.png"), help="0 and 255 [%(default)s]")
    parser.add_argument("--url", default="localhost:8000", help="the server's HTTP port [%(default)s]")
    parser.add_argument("--model", default="tfanet", help="as given to tfanet-export triton [%(default)s]")
    options = parser.parse_args()
    try:
        with triton.InferenceServerClient(options.url) as client:
            mask = find(client, options.model, options.picture.read_bytes(), options.sentence)
    except (InferenceServerException, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Image.fromarray(mask).save(options.output)
    print(f"{(mask > 0).mean():.2%} of {mask.shape[1]} x {mask.shape[0]} pixels; wrote {options.output}")
    return 0


def find(client: triton.InferenceServerClient, model: str, picture: bytes, sentence: str) -> np.ndarray:
    """The mask uint8 `[H, W]`, 0 and 255, at the size of the picture (upright) whose file's bytes are given.

    Pixels in memory, uint8 `[H, W, 3]` RGB, go into the input `image` in place of `image_file`; the output
    `mask_logits` has the float32 scores, above 0 where the mask is.
    """
    file = np.frombuffer(picture, dtype=np.uint8)
    inputs = [
        triton.InferInput("image_file", list(file.shape), "UINT8").set_data_from_numpy(file),
        triton.InferInput("sentence", [1], "BYTES").set_data_from_numpy(np.array([sentence], dtype=object)),
    ]
    answer = client.infer(model, inputs, outputs=[triton.InferRequestedOutput("mask")])
    return answer.as_numpy("mask")


if __name__ == "__main__":
    sys.exit(main())
