"""Triton kernels in tests: on a GPU where there is one, else on the CPU under Triton's interpreter.

The interpreter must be chosen before Triton is imported, and then nothing can be compiled. So without a GPU
the kernels' tests are skipped in an ordinary session, and `test_interpreted_triton.py` runs them in another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of the kernels' tensors. Uninitialised memory is filled with NaN."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        _scan_by_doubling(monkeypatch)
        _multiply_bfloat16(monkeypatch)
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA device; test_interpreted_triton.py runs this under the interpreter")
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    return "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def allocate_poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        memory = allocate(*arguments, **options)
        return memory.fill_(torch.nan) if memory.is_floating_point() else memory

    return allocate_poisoned


def _scan_by_doubling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scan whole blocks in log2(length) steps, as a GPU does.

    Triton's interpreter scans element by element, which takes 0.4 ms each and would accept an operation that
    is not associative.
    """
    from triton.runtime import interpreter

    def scan(self: interpreter.ScanOps, inputs: tuple) -> list:
        types = [tensor.dtype for tensor in inputs]
        blocks = [np.moveaxis(tensor.handle.data, self.axis, 0) for tensor in inputs]
        reach = 1
        while reach < len(blocks[0]):
            before = [self.to_tensor(np.roll(x, reach, 0), t) for x, t in zip(blocks, types, strict=True)]
            here = [self.to_tensor(x, t) for x, t in zip(blocks, types, strict=True)]
            combined = self.combine_fn.fn(*before, *here)
            blocks = [
                np.concatenate([x[:reach], y.handle.data[reach:]])
                for x, y in zip(blocks, combined, strict=True)
            ]
            reach *= 2
        return [
            self.to_tensor(np.ascontiguousarray(np.moveaxis(x, 0, self.axis)), t)
            for x, t in zip(blocks, types, strict=True)
        ]

    monkeypatch.setattr(interpreter.ScanOps, "generic_scan", scan)


def _multiply_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the interpreter's dot convert bfloat16, which it stores and would multiply as 16-bit integers."""
    import triton.language as tl
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def to_fp32(x: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        bits = x.data.view(np.uint16).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *others: dot(self, to_fp32(a), to_fp32(b), *others),
    )
