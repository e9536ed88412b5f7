"""The core model for a server without ONNX Runtime's backend: runs the same file in the Python backend."""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), options)

    def execute(self, requests):
        """Compute all requests as one batch, and append its size to `batches.txt`."""
        with (HERE / "batches.txt").open("a") as file:
            file.write(f"{len(requests)}\n")
        feed = {
            name: np.concatenate(
                [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            )
            for name in ("image", "tokens")
        }
        (logits,) = self.session.run(["mask_logits"], feed)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("mask_logits", logits[i : i + 1])])
            for i in range(len(requests))
        ]
