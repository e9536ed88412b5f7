"""The Triton model that clients call: image and expression in, mask at the image's size out.

It preprocesses as `tfanet-predict` does, calls the core model for the logits and resizes them. `tfanet-export
triton` writes it to the repository with copies of the modules of tfanet that it imports; those need numpy,
pillow, ftfy and regex, and no PyTorch.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# First on the path: the copies next to this file match the core model, an installed tfanet may not.
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402  # pyright: ignore[reportMissingImports]
from PIL import Image  # noqa: E402

from tfanet.data.images import decode_image  # noqa: E402
from tfanet.data.preprocess import (  # noqa: E402
    logits_to_size,
    resize_image,
    token_rows,
)
from tfanet.data.tokens import VOCABULARY, BytePairs  # noqa: E402
from tfanet.errors import UserError, VerificationError  # noqa: E402

MAX_EXPRESSION_BYTES = 4096
"""A model takes about twenty tokens, and encoding a word takes time quadratic in its length."""


class TritonPythonModel:
    """Triton's interface of a Python model."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._core: str = parameters["core_model"]["string_value"]
        self._image_size = int(parameters["image_size"]["string_value"])
        self._token_length = int(parameters["token_length"]["string_value"])
        self._encoder = BytePairs(HERE / VOCABULARY)
        # Warm-up: libraries build their tables on first use.
        token_rows(self._encoder, ["warm up"], self._token_length)
        resize_image(Image.new("RGB", (2, 2)), self._image_size)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            outputs = self._outputs(request)
        except UserError as error:
            invalid = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=invalid)
        except VerificationError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(output_tensors=outputs)

    def _outputs(self, request: Any) -> list[Any]:
        """The output tensors that the request asks for."""
        image = _image(request)
        tokens = token_rows(self._encoder, [_expression(request)], self._token_length, strict=True)
        square = self._logits(resize_image(image, self._image_size), tokens)
        logits = logits_to_size(square, image.height, image.width)
        outputs = {"mask_logits": logits, "mask": (logits > 0).astype(np.uint8) * np.uint8(255)}
        return [pb_utils.Tensor(name, outputs[name]) for name in request.requested_output_names()]

    def _logits(self, image: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The core model's logits, float32 `[S, S]`, for image `[S, S, 3]` and tokens `[1, L]`."""
        request = pb_utils.InferenceRequest(
            model_name=self._core,
            requested_output_names=["mask_logits"],
            inputs=[pb_utils.Tensor("image", image[None]), pb_utils.Tensor("tokens", tokens)],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise VerificationError(f"{self._core} failed: {response.error().message()}")
        logits = pb_utils.get_output_tensor_by_name(response, "mask_logits").as_numpy()[0]
        if not np.isfinite(logits).all():
            raise VerificationError(f"{self._core} returned logits that are NaN or infinite")
        return logits


def _image(request: Any) -> Image.Image:
    """The image of a request, RGB, from the one of its two inputs that is given."""
    file = pb_utils.get_input_tensor_by_name(request, "image_file")
    pixels = pb_utils.get_input_tensor_by_name(request, "image")
    if (file is None) == (pixels is None):
        raise UserError("give either image_file (the bytes of a JPEG, PNG, ...) or image (RGB pixels)")
    if file is not None:
        return decode_image(io.BytesIO(file.as_numpy().tobytes()), "image_file")
    values = pixels.as_numpy()
    if not values.size:
        raise UserError(f"image has no pixels: its shape is {[*values.shape]}")
    return Image.fromarray(values)


def _expression(request: Any) -> str:
    (text,) = pb_utils.get_input_tensor_by_name(request, "sentence").as_numpy()
    if len(text) > MAX_EXPRESSION_BYTES:
        raise UserError(f"the expression has {len(text)} bytes; the limit is {MAX_EXPRESSION_BYTES}")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError("the expression is not UTF-8") from error
