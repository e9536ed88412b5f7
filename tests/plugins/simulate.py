"""A plugin's results without a GPU: its kernel in Triton's interpreter, its PyTorch code on the CPU.

A layer, `item` below, is one of `layers.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from typing import Any
from unittest import mock

import numpy as np
import torch

TORCH_TYPES = {"HALF": torch.float16, "FLOAT": torch.float32}


class Recorder:
    """A replacement for `compile_ptx` that records its arguments."""

    def __init__(self) -> None:
        self.kernel: Any = None
        self.constants: dict[str, Any] = {}
        self.arguments: list[str] = []

    def __call__(self, kernel: Any, types: dict[str, str], constants: dict[str, Any], **_: Any) -> Any:
        from tfanet_plugins.ptx import Ptx

        self.kernel, self.constants, self.arguments = kernel, dict(constants), list(types)
        return Ptx(kernel.__name__, "", 128, 0)

    def launch_error(self, item: dict[str, Any], sizes: list[list[int]], launch: dict[str, Any]) -> float:
        """`error` of the kernel with TensorRT's argument order and the grid and scalars of `launch`."""
        inputs = make_inputs(item, sizes)
        expected = results(item, inputs)
        outputs = poisoned(expected, item)
        values = [*inputs, *launch["scalars"], *outputs]
        grid = (launch["grid_x"], launch["grid_y"], launch["grid_z"])
        self.kernel[grid](**dict(zip(self.arguments, values, strict=True)), **self.constants)
        return error(outputs, expected)


def results(item: dict[str, Any], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The outputs of the layer's reference function `oracle`, given as `module:function`."""
    module, _, name = item["oracle"].partition(":")
    return as_list(getattr(importlib.import_module(module), name)(*inputs))


def as_list(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def make_inputs(item: dict[str, Any], sizes: list[list[int]]) -> list[torch.Tensor]:
    """Normally distributed inputs x; the layer's `negative` inputs are -exp(x)."""
    rng = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=rng) for shape in sizes]
    values = [-x.exp() if i in item["negative"] else x for i, x in enumerate(values)]
    return [x.to(TORCH_TYPES[name]) for x, name in zip(values, item["types"], strict=False)]


def poisoned(like: list[torch.Tensor], item: dict[str, Any]) -> list[torch.Tensor]:
    """Output tensors filled with NaN."""
    types = item["types"][len(item["inputs"]) :]
    return [
        torch.full(tensor.shape, torch.nan, dtype=TORCH_TYPES[name])
        for tensor, name in zip(like, types, strict=True)
    ]


def error(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest |x - y| / max |y| over the tensors; NaN if an element was not written."""
    pairs = [(x.double(), y.double()) for x, y in zip(actual, expected, strict=True)]
    # The initial states of a map of one chunk are all zero.
    shares = [(x - y).abs().max() / y.abs().max().clamp(min=1e-30) for x, y in pairs]
    return torch.stack(shares).max().item()


def jit_error(trt: Any, item: dict[str, Any]) -> float:
    """`error` of the plugin's `impl`, called by the bindings with host memory instead of GPU memory."""
    creator = trt.get_plugin_registry().get_creator(item["name"], "1", "tfanet")
    plugin = creator.create_plugin(
        item["name"],
        "tfanet",
        trt.PluginFieldCollection([]),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_JIT,
    )
    inputs = make_inputs(item, item["cases"][0])
    expected = results(item, inputs)
    outputs = poisoned(expected, item)
    of_inputs, of_outputs = ([_desc(trt, tensor) for tensor in side] for side in (inputs, outputs))
    plugin.get_output_data_types([desc.type for desc in of_inputs], [x.dim() for x in inputs])
    with (
        mock.patch("tfanet_plugins.jit._borrow", _on_the_host),
        mock.patch("torch.cuda.ExternalStream", lambda handle: handle),
        mock.patch("torch.cuda.stream", contextlib.nullcontext),
    ):
        plugin.enqueue(
            of_inputs,
            of_outputs,
            [tensor.data_ptr() for tensor in inputs],
            [tensor.data_ptr() for tensor in outputs],
            [trt.Dims(list(tensor.stride())) for tensor in inputs],
            [trt.Dims(list(tensor.stride())) for tensor in outputs],
            1,
        )
    return error(outputs, expected)


def _desc(trt: Any, tensor: torch.Tensor) -> Any:
    desc = trt.PluginTensorDesc()
    desc.dims = trt.Dims(list(tensor.shape))
    desc.type = trt.float16 if tensor.dtype == torch.float16 else trt.float32
    desc.format = trt.TensorFormat.LINEAR
    desc.scale = -1.0
    return desc


def _on_the_host(tensor: Any) -> torch.Tensor:
    """As `torch.as_tensor` for `__cuda_array_interface__`, but for host memory."""
    interface = tensor.__cuda_array_interface__
    dtype = np.dtype(interface["typestr"])
    size = int(np.prod(interface["shape"])) * dtype.itemsize
    memory = (ctypes.c_byte * size).from_address(interface["data"][0])
    flat = np.frombuffer(memory, dtype)
    return torch.from_numpy(np.lib.stride_tricks.as_strided(flat, interface["shape"], interface["strides"]))
