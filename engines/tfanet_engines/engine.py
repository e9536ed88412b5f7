"""What every engine offers, whatever runs it."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from tfanet.errors import UserError
from tfanet.signature import BATCH, TensorSpec, signature_of

if TYPE_CHECKING:
    import torch

    from tfanet.config import TFANetConfig


class Engine(ABC):
    """A model that is ready to run; a context manager that frees it at the end. Any thread may use it."""

    kind: str
    """`pytorch`, `onnx` or `plan`."""

    def __init__(self, file: Path, config: TFANetConfig, runtime: str, device: str = "cpu") -> None:
        self.file = file
        self.config = config
        self.name = f"{file.name} ({runtime})"
        self.device = device
        """Where it computes, as PyTorch says it: `cpu`, `cuda:0`."""
        self._closed = False

    @overload
    def infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray: ...

    @overload
    def infer(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor: ...

    def infer(self, images: Any, tokens: Any) -> Any:
        """Mask logits float32 `[B, S, S]` of images uint8 `[B, S, S, 3]` and tokens int64 `[B, L]`, B >= 1.

        NumPy arrays give an array. PyTorch's tensors on `device` are used where they lie and give a tensor
        there; on a GPU the caller's current stream is waited for, and waits for the result.

        Raises `UserError` when an input has another type, shape or device, or the file gives no such logits.
        """
        if self._closed:
            raise ValueError(f"{self.name} is closed")
        signature = signature_of(self.config)
        values = images, tokens
        tensors = [_is_tensor(value) for value in values]
        for value, spec in zip(values, signature.inputs, strict=True):
            _check_input(value, spec, tensors[0])
        if len(images) != len(tokens):
            raise UserError(f"{len(images)} images but {len(tokens)} sentences; give one sentence an image")
        if tensors[0]:
            for value, spec in zip(values, signature.inputs, strict=True):
                if str(value.device) != self.device:
                    raise UserError(
                        f"{spec.name} is on {value.device}, {self.name} on {self.device}; move it there or "
                        "give NumPy arrays"
                    )
            logits = self._infer_tensors(*(value.contiguous() for value in values))
        else:
            logits = self._infer(*(np.ascontiguousarray(value) for value in values))
        self._check_logits(logits, len(images))
        return logits

    def warm_up(self, batch: int = 1, calls: int = 2) -> float:
        """Do for calls of `batch` images what only the first ones do; the seconds it took.

        Libraries are loaded, kernels chosen or compiled, buffers made and CUDA graphs captured, so that what
        is timed afterwards is the inference alone. The pictures are blank.
        """
        images, tokens = self._blank(batch)
        began = time.perf_counter()
        for _ in range(calls):
            self.infer(images, tokens)
        return time.perf_counter() - began

    def _blank(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        image, tokens = (
            np.zeros((batch, *(int(n) for n in spec.shape[1:])), spec.dtype)
            for spec in signature_of(self.config).inputs
        )
        return image, tokens

    @abstractmethod
    def _infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _infer_tensors(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def _free(self) -> None: ...

    def _check_logits(self, logits: Any, count: int) -> None:
        spec = signature_of(self.config).mask_logits
        wanted = (count, *spec.shape[1:])
        found = _dtype(logits)
        if found != spec.dtype or tuple(logits.shape) != wanted:
            raise UserError(
                f"{self.name} gives {spec.name} as {found} {[*logits.shape]}, not {spec.dtype} {[*wanted]}; "
                "its file is no model of tfanet: export it again"
            )

    def close(self) -> None:
        """Free the model, once calls under way are done; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._free()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    return torch is not None and isinstance(value, torch.Tensor)


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _check_input(value: Any, spec: TensorSpec, tensor: bool) -> None:
    """`UserError` unless `value` is an array, or a tensor if that is wanted, as `spec` says."""
    wanted_shape = ", ".join(map(str, spec.shape))
    if _is_tensor(value) != tensor or not (tensor or isinstance(value, np.ndarray)):
        form = "a PyTorch tensor as the image is" if tensor else "a NumPy array"
        raise UserError(
            f"{spec.name} must be {spec.dtype} [{wanted_shape}], {form}, not a {type(value).__name__}"
        )
    fits = value.ndim == len(spec.shape) and all(
        size >= 1 if wanted == BATCH else size == wanted
        for size, wanted in zip(value.shape, spec.shape, strict=True)
    )
    if _dtype(value) != spec.dtype or not fits:
        raise UserError(
            f"{spec.name} must be {spec.dtype} [{wanted_shape}] with a batch of at least 1, not "
            f"{_dtype(value)} {[*value.shape]}"
        )
