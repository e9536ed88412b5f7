"""A plugin's just-in-time form: TensorRT calls back into Python, which runs the PyTorch operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorrt.plugin as trtp  # pyright: ignore[reportMissingImports]
import torch


def run(
    operation: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    inputs: Sequence[trtp.Tensor],
    outputs: Sequence[trtp.Tensor],
    stream: int,
) -> None:
    """Write `operation(*inputs)` to `outputs` on the CUDA stream of handle `stream`; does not copy inputs."""
    with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
        results = operation(*(_borrow(tensor) for tensor in inputs))
        if isinstance(results, torch.Tensor):
            results = (results,)
        for output, result in zip(outputs, results, strict=True):
            _borrow(output).copy_(result)


def _borrow(tensor: trtp.Tensor) -> torch.Tensor:
    """TensorRT's memory as a PyTorch tensor, through `__cuda_array_interface__`."""
    return torch.as_tensor(tensor, device="cuda")
