"""What every engine offers, whatever runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from tfanet.errors import UserError
from tfanet.signature import BATCH, TensorSpec, signature_of

if TYPE_CHECKING:
    from tfanet.config import TFANetConfig


class Engine(ABC):
    """A model that is ready to run; a context manager that frees it at the end."""

    kind: str
    """`pytorch`, `onnx` or `plan`."""

    def __init__(self, file: Path, config: TFANetConfig, runtime: str) -> None:
        self.file = file
        self.config = config
        self.name = f"{file.name} ({runtime})"
        self._closed = False

    def infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Mask logits float32 `[B, S, S]` of images uint8 `[B, S, S, 3]` and tokens int64 `[B, L]`, B >= 1.

        Raises `UserError` when an input has another type or shape.
        """
        if self._closed:
            raise ValueError(f"{self.name} is closed")
        signature = signature_of(self.config)
        for value, spec in zip((images, tokens), signature.inputs, strict=True):
            _check_input(value, spec)
        if len(images) != len(tokens):
            raise UserError(f"{len(images)} images but {len(tokens)} sentences; give one sentence an image")
        return self._infer(np.ascontiguousarray(images), np.ascontiguousarray(tokens))

    @abstractmethod
    def _infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _free(self) -> None: ...

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._free()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_input(value: Any, spec: TensorSpec) -> None:
    expected = f"{spec.name} must be {spec.dtype} [{', '.join(map(str, spec.shape))}]"
    if not isinstance(value, np.ndarray):
        raise UserError(f"{expected}, not a {type(value).__name__}")
    fits = value.ndim == len(spec.shape) and all(
        size >= 1 if wanted == BATCH else size == wanted
        for size, wanted in zip(value.shape, spec.shape, strict=True)
    )
    if value.dtype.name != spec.dtype or not fits:
        raise UserError(f"{expected} with a batch of at least 1, not {value.dtype} {[*value.shape]}")
