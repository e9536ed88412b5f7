"""Run a checkpoint in PyTorch, FP32: the reference that every other engine is compared with."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tfanet.checkpoint import load_model
from tfanet_engines.engine import Engine


class TorchEngine(Engine):
    """See `Engine`. Runs on the GPU if there is one and `providers` allow it."""

    kind = "pytorch"

    def __init__(
        self,
        file: Path,
        providers: Sequence[str] | None,
        threads: int | None,
        image_size: int | None = None,
    ) -> None:
        model = load_model(file, image_size=image_size)
        allowed = providers is None or "CUDAExecutionProvider" in providers
        gpu = allowed and torch.cuda.is_available()
        self._device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        self._model = model.to(self._device)
        self._threads = threads
        self._lock = threading.Lock()
        super().__init__(file, model.config, f"PyTorch, {self._device.type.upper()}", str(self._device))

    def _infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        inputs = (torch.tensor(x, device=self._device) for x in (images, tokens))
        return self._infer_tensors(*inputs).cpu().numpy()

    def _infer_tensors(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        # Thread number and cuDNN settings are process-wide, so calls take turns.
        with self._lock:
            before = torch.get_num_threads()
            torch.set_num_threads(self._threads or before)
            try:
                # By default cuDNN convolutions use TF32; PyTorch's matrix products do not.
                with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                    return self._model(images, tokens).float()
            finally:
                torch.set_num_threads(before)

    def _free(self) -> None:
        with self._lock:
            del self._model
