"""The PTX that TensorRT gets, launched on a GPU as TensorRT launches it. Run by `make gpu-check`."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from cross_scan_parts import PARTS
from layers import attention, cross_scan, scaled_square, scan
from simulate import TORCH_TYPES, as_list, error, make_inputs

from tfanet.ops import linear_cross_attention, selective_scan

pytestmark = [pytest.mark.integration, pytest.mark.gpu]
VERSION = "11.4.0.106"
GUARD = 1024
"""Elements before and after each output that must not change."""
TOLERANCE = {"FLOAT": 1e-5, "HALF": 1e-3}
LAYERS = {
    **{
        f"scan {groups} x {dim} x {length}, {states} states, {x}": scan(
            x, groups, dim, states, length, batches=(1, 3)
        )
        for x in ("HALF", "FLOAT")
        for groups, dim, states, length in [
            (4, 256, 1, 14400),
            (4, 512, 1, 3600),
            (4, 1024, 1, 900),
            (4, 2048, 1, 225),
            (2, 24, 16, 63),
            (1, 5, 2, 17),
            (4, 3, 1, 1),
        ]
    },
    **{
        f"attention {heads} x {width}, {queries} to {keys}, {x}": attention(
            x, heads, width, queries, keys, gamma=x, batches=(1, 3)
        )
        for x in ("HALF", "FLOAT")
        for heads, width, queries, keys in [(9, 16, 17, 14400), (9, 16, 14400, 17), (3, 24, 22, 225)]
    },
    **{
        f"{name} of {height} x {width} x {dim}, rank {rank}, {states} states, {x}": cross_scan(
            name, x, height, width, dim, rank, states, batches=(1, 3)
        )
        for x in ("HALF", "FLOAT")
        for height, width, dim, rank, states in [
            (120, 120, 256, 8, 1),
            (60, 60, 512, 16, 1),
            (30, 30, 1024, 32, 1),
            (15, 15, 2048, 64, 1),
            (7, 9, 24, 3, 16),
            (1, 1, 3, 1, 1),
        ]
        for name in PARTS
    },
    "third op, HALF": scaled_square("HALF", (1001,), batches=(1, 3)),
}


def operation(item: dict[str, Any]):
    """The layer's operation, like its oracle but without loops over tokens."""
    from scaled_square import scaled_square as third

    operations = {
        "SelectiveScan": selective_scan,
        "LinearCrossAttention": linear_cross_attention,
        "ScaledSquare": third,
        **PARTS,
    }
    return operations[item["name"]]


class Kernel:
    """A kernel of PTX text, loaded and launched with the CUDA driver API."""

    def __init__(self, code: str, name: str) -> None:
        torch.cuda.init()
        torch.empty(1, device="cuda")  # creates the context for the driver's calls
        self._cuda = ctypes.CDLL("libcuda.so.1")
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(code.encode()))
        self._call("cuModuleGetFunction", ctypes.byref(self._function), module, name.encode())

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._cuda, function)(*arguments)
        assert status == 0, f"{function}: CUresult {status}"

    def launch(self, case: dict[str, Any], inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """Launch with the arguments inputs, int32 scalars, outputs, and no others."""
        values = [ctypes.c_uint64(tensor.data_ptr()) for tensor in inputs]
        values += [ctypes.c_int32(scalar) for scalar in case["scalars"]]
        values += [ctypes.c_uint64(tensor.data_ptr()) for tensor in outputs]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        sizes = [
            case[key] for key in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")
        ]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._call("cuLaunchKernel", self._function, *sizes, stream, pointers, None)
        torch.cuda.synchronize()


@pytest.fixture(scope="module")
def built(ask_tensorrt) -> dict[str, Any]:
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    layers = [item | {"capability": capability} for item in LAYERS.values()]
    reply = ask_tensorrt(VERSION, {"modules": ["scaled_square_plugin"], "layers": layers})
    assert [item["failed"] for item in reply["layers"] if "failed" in item] == [], reply["output"]
    return dict(zip(LAYERS, reply["layers"], strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_launch_computes_the_operation(built, name):
    item = LAYERS[name]
    for number, sizes in enumerate(item["cases"]):
        inputs = make_inputs(item, sizes)
        expected = as_list(operation(item)(*inputs))
        dtypes = [TORCH_TYPES[type] for type in item["types"][len(inputs) :]]
        on_gpu = [tensor.cuda() for tensor in inputs]
        for kernel in built[name]["kernels"]:
            memory = [
                torch.full((tensor.numel() + 2 * GUARD,), torch.nan, dtype=dtype, device="cuda")
                for tensor, dtype in zip(expected, dtypes, strict=True)
            ]
            outputs = [
                guarded[GUARD:-GUARD].view(tensor.shape)
                for guarded, tensor in zip(memory, expected, strict=True)
            ]
            Kernel(kernel["code"], kernel["kernel"]).launch(kernel["cases"][number], on_gpu, outputs)
            actual = [output.cpu() for output in outputs]
            assert error(actual, expected) <= TOLERANCE[item["types"][-1]], kernel["tactic"]
            for guarded in memory:
                assert guarded[:GUARD].isnan().all()
                assert guarded[-GUARD:].isnan().all()
