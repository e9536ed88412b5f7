"""The interface of every engine."""

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
    """A model that is ready to run. A context manager that frees it; thread-safe."""

    kind: str
    """`pytorch`, `onnx` or `plan`."""

    def __init__(self, file: Path, config: TFANetConfig, runtime: str, device: str = "cpu") -> None:
        self.file = file
        self.config = config
        self.name = f"{file.name} ({runtime})"
        self.device = device
        """Where it computes, in PyTorch's notation: `cpu`, `cuda:0`."""
        self._closed = False

    @overload
    def infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray: ...

    @overload
    def infer(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor: ...

    def infer(self, images: Any, tokens: Any) -> Any:
        """Mask logits float32 `[B, S, S]` of images uint8 `[B, S, S, 3]` and tokens int64 `[B, L]`, B >= 1.

        NumPy arrays give a NumPy array. PyTorch tensors on `device` are used without copies and give a tensor
        on it; on a GPU the call is ordered with the caller's current stream.

        Raises `UserError` if an input or the logits have another type, shape or device.
        """
        if self._closed:
            raise ValueError(f"{self.name} is closed")
        signature = signature_of(self.config)
        values = images, tokens
        tensors = [_is_tensor(value) for value in values]
        for value, spec in zip(values, signature.inputs, strict=True):
            _check_input(value, spec, tensors[0])
        if len(images) != len(tokens):
            raise UserError(
                f"{len(images)} images but {len(tokens)} expressions; give one expression per image"
            )
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
        """Run `calls` calls with `batch` blank images; returns the seconds they took.

        The first calls load libraries, choose or compile kernels, allocate buffers and capture CUDA graphs.
        Call it before timing inference.
        """
        images, tokens = self._blank(batch)
        start = time.perf_counter()
        for _ in range(calls):
            self.infer(images, tokens)
        return time.perf_counter() - start

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
        shape, dtype = (count, *spec.shape[1:]), _dtype(logits)
        if dtype != spec.dtype or tuple(logits.shape) != shape:
            raise UserError(
                f"{self.name} gives {spec.name} as {dtype} {[*logits.shape]}, not {spec.dtype} {[*shape]}; "
                "export the file again"
            )

    def close(self) -> None:
        """Free the model after the calls in progress; a second call does nothing."""
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
    torch = sys.modules.get("torch")  # a caller that has a tensor has imported it
    return torch is not None and isinstance(value, torch.Tensor)


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _check_input(value: Any, spec: TensorSpec, tensor: bool) -> None:
    """Raise `UserError` unless `value` fits `spec` and is a NumPy array, or a PyTorch tensor if `tensor`."""
    shape = ", ".join(map(str, spec.shape))
    if _is_tensor(value) != tensor or not (tensor or isinstance(value, np.ndarray)):
        form = "a PyTorch tensor like the image" if tensor else "a NumPy array"
        raise UserError(f"{spec.name} must be {spec.dtype} [{shape}], {form}, not a {type(value).__name__}")
    fits = value.ndim == len(spec.shape) and all(
        size >= 1 if expected == BATCH else size == expected
        for size, expected in zip(value.shape, spec.shape, strict=True)
    )
    if _dtype(value) != spec.dtype or not fits:
        raise UserError(
            f"{spec.name} must be {spec.dtype} [{shape}] with a batch of at least 1, not "
            f"{_dtype(value)} {[*value.shape]}"
        )
