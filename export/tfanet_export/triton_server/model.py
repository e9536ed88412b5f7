"""The model that clients call: a picture and a sentence in, a mask at the picture's size out. Runs in Triton.

It prepares the picture and the sentence, has the core model compute the logits, and scales them back: what
`tfanet-predict` does. `tfanet-export triton` puts it into a repository with copies of the modules of tfanet
that it needs; those need numpy, pillow, ftfy and regex, and no PyTorch.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The copies beside this file fit the core model; a tfanet that is installed may be of another version.
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

LONGEST_SENTENCE = 4096
"""Bytes. A model takes some twenty tokens, and the time to encode a word grows with its length squared."""


class TritonPythonModel:
    """Triton's interface to a model in Python."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._core: str = parameters["core_model"]["string_value"]
        self._image_size = int(parameters["image_size"]["string_value"])
        self._token_length = int(parameters["token_length"]["string_value"])
        self._encoder = BytePairs(HERE / VOCABULARY)
        # The first sentence and picture take longer: libraries build their tables then.
        token_rows(self._encoder, ["the first sentence"], self._token_length)
        resize_image(Image.new("RGB", (2, 2)), self._image_size)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            outputs = self._outputs(request)
        except UserError as error:
            refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refusal)
        except VerificationError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(output_tensors=outputs)

    def _outputs(self, request: Any) -> list[Any]:
        """The output tensors that the request asks for."""
        picture = _picture(request)
        tokens = token_rows(self._encoder, [_sentence(request)], self._token_length, strict=True)
        square = self._logits(resize_image(picture, self._image_size), tokens)
        logits = logits_to_size(square, picture.height, picture.width)
        found = {"mask_logits": logits, "mask": (logits > 0).astype(np.uint8) * np.uint8(255)}
        wanted = request.requested_output_names()
        return [pb_utils.Tensor(name, found[name]) for name in wanted]

    def _logits(self, image: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The core model's logits float32 `[S, S]` of image `[S, S, 3]` and tokens `[1, L]`."""
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
            raise VerificationError(f"{self._core} gives logits that are NaN or infinite")
        return logits


def _picture(request: Any) -> Image.Image:
    """The picture of a request, RGB, from whichever of the two inputs it has."""
    file = pb_utils.get_input_tensor_by_name(request, "image_file")
    pixels = pb_utils.get_input_tensor_by_name(request, "image")
    if (file is None) == (pixels is None):
        raise UserError("give image_file (the bytes of a JPEG, PNG, ...) or image (RGB pixels), one of them")
    if file is not None:
        return decode_image(io.BytesIO(file.as_numpy().tobytes()), "image_file")
    values = pixels.as_numpy()
    if not values.size:
        raise UserError(f"image has no pixels: its shape is {[*values.shape]}")
    return Image.fromarray(values)


def _sentence(request: Any) -> str:
    (text,) = pb_utils.get_input_tensor_by_name(request, "sentence").as_numpy()
    if len(text) > LONGEST_SENTENCE:
        raise UserError(f"the sentence has {len(text)} bytes, more than {LONGEST_SENTENCE}")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError("the sentence is not UTF-8") from error
