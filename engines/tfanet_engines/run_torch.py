"""Run a checkpoint in PyTorch, FP32: the reference that every other engine is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tfanet.checkpoint import load_model
from tfanet_engines.engine import Engine


class TorchEngine(Engine):
    """See `Engine`; on the GPU where there is one and `providers` allow it."""

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
        self._device = torch.device("cuda" if allowed and torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device)
        self._threads = threads
        super().__init__(file, model.config, f"PyTorch, {self._device.type.upper()}")

    def _infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or before)
        try:
            # cuDNN's convolutions use TF32 unless told otherwise; PyTorch's matrix products do not.
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                inputs = [torch.tensor(x, device=self._device) for x in (images, tokens)]
                return self._model(*inputs).float().cpu().numpy()
        finally:
            torch.set_num_threads(before)

    def _free(self) -> None:
        del self._model
