"""Request a mask from a Triton server: `python triton_client.py IMAGE "the red mug on the left" -o mask.png`.

The server serves a repository of `tfanet-export triton`. Needs: pip install "tritonclient[http]" pillow
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
    parser = argparse.ArgumentParser(description="Segment the object that an expression describes.")
    parser.add_argument("image", type=Path, help="JPEG, PNG or another format that Pillow reads")
    parser.add_argument("expression", help="text that describes the object")
    parser.add_argument("-o", "--output", type=Path, default=Path("mask.png"), help="0 and 255 [%(default)s]")
    parser.add_argument("--url", default="localhost:8000", help="the server's HTTP port [%(default)s]")
    parser.add_argument("--model", default="tfanet", help="as given to tfanet-export triton [%(default)s]")
    options = parser.parse_args()
    try:
        with triton.InferenceServerClient(options.url) as client:
            mask = find(client, options.model, options.image.read_bytes(), options.expression)
    except (InferenceServerException, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Image.fromarray(mask).save(options.output)
    print(f"{(mask > 0).mean():.2%} of {mask.shape[1]} x {mask.shape[0]} pixels; wrote {options.output}")
    return 0


def find(client: triton.InferenceServerClient, model: str, image_file: bytes, expression: str) -> np.ndarray:
    """The mask uint8 `[H, W]`, 0 or 255, at the size of the upright image; `image_file` has its bytes.

    To send pixels, uint8 `[H, W, 3]` RGB, use the input `image` instead of `image_file`. The output
    `mask_logits` has the float32 logits; the mask is where they are above 0.
    """
    file = np.frombuffer(image_file, dtype=np.uint8)
    inputs = [
        triton.InferInput("image_file", list(file.shape), "UINT8").set_data_from_numpy(file),
        triton.InferInput("sentence", [1], "BYTES").set_data_from_numpy(np.array([expression], dtype=object)),
    ]
    response = client.infer(model, inputs, outputs=[triton.InferRequestedOutput("mask")])
    return response.as_numpy("mask")


if __name__ == "__main__":
    sys.exit(main())
