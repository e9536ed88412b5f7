"""A plugin layer as TensorRT's builder uses it: through NVIDIA's bindings, driven by `nvinfer_stub.cpp`."""

from __future__ import annotations

import ctypes
from typing import Any

MAX_RANK = 8
ROOM = 64
LAUNCH = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")


class Dims(ctypes.Structure):
    _fields_ = [("rank", ctypes.c_int32), ("size", ctypes.c_int64 * MAX_RANK)]

    @classmethod
    def of(cls, sizes: list[int]) -> Dims:
        return cls(len(sizes), (ctypes.c_int64 * MAX_RANK)(*sizes))

    def list(self) -> list[int]:
        return list(self.size[: self.rank])


class TensorDesc(ctypes.Structure):
    _fields_ = [
        ("dims", Dims),
        ("type", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("scale", ctypes.c_float),
    ]


class DynamicTensorDesc(ctypes.Structure):
    _fields_ = [("desc", TensorDesc), ("min", Dims), ("max", Dims), ("opt", Dims)]


class Layer:
    """One plugin layer, from creation to kernel; every method raises `RuntimeError` if the plugin fails."""

    def __init__(self, stub: ctypes.CDLL, trt: Any, name: str, inputs: list[dict]) -> None:
        self._lib, self._trt, self.inputs = stub, trt, len(inputs)
        descs = (DynamicTensorDesc * len(inputs))(*(self._desc(**tensor) for tensor in inputs))
        handle = stub.layer_open(b"tfanet", name.encode(), descs, len(inputs))
        if not handle:
            raise RuntimeError(f"tfanet::{name} cannot be created")
        self._handle = ctypes.c_void_p(handle)
        self.outputs = stub.layer_outputs(self._handle)
        self.width = self.inputs + self.outputs

    def _desc(self, type: str, min: list[int], opt: list[int], max: list[int]) -> DynamicTensorDesc:
        fixed = [low if low == high else -1 for low, high in zip(min, max, strict=True)]
        desc = TensorDesc(Dims.of(fixed), int(getattr(self._trt.DataType, type)), 0, -1.0)
        return DynamicTensorDesc(desc, Dims.of(min), Dims.of(max), Dims.of(opt))

    def tensors(self) -> list[dict[str, Any]]:
        """Type, symbolic size (-1 is dynamic) and profile of each input and output."""
        result = []
        for index in range(self.width):
            address = self._lib.layer_tensor(self._handle, index)
            tensor = DynamicTensorDesc.from_address(address)
            result.append(
                {
                    "type": self._trt.DataType(tensor.desc.type).name,
                    "sizes": tensor.desc.dims.list(),
                    "min": tensor.min.list(),
                    "opt": tensor.opt.list(),
                    "max": tensor.max.list(),
                }
            )
        return result

    def combinations(self) -> list[tuple[list[str], list[str]]]:
        """Types and formats of all tensors in each combination that the plugin supports."""
        rows = (ctypes.c_int32 * (ROOM * self.width))(), (ctypes.c_int32 * (ROOM * self.width))()
        count = self._lib.layer_combinations(self._handle, *rows, ROOM)
        if count < 0:
            raise RuntimeError("no combination of types")
        types, formats = (
            [list(row[i * self.width : (i + 1) * self.width]) for i in range(count)] for row in rows
        )
        name_types = [[self._trt.DataType(value).name for value in row] for row in types]
        name_formats = [[self._trt.TensorFormat(value).name for value in row] for row in formats]
        return list(zip(name_types, name_formats, strict=True))

    def configure(self, types: list[str], formats: list[str]) -> list[int]:
        """Choose a combination; returns its tactics."""
        row = ctypes.c_int32 * self.width
        tactics = (ctypes.c_int32 * ROOM)()
        count = self._lib.layer_configure(
            self._handle,
            row(*(int(getattr(self._trt.DataType, name)) for name in types)),
            row(*(int(getattr(self._trt.TensorFormat, name)) for name in formats)),
            tactics,
            ROOM,
        )
        if count < 0:
            raise RuntimeError(f"cannot be configured for {types}")
        return list(tactics[:count])

    def launch(self, tactic: int, cases: list[list[list[int]]]) -> dict[str, Any]:
        """The tactic's kernel; for the input sizes of each case also grid, block and scalar arguments."""
        if self._lib.layer_launch(self._handle, tactic):
            raise RuntimeError(f"tactic {tactic} gives no kernel")
        scalars = self._lib.layer_argument_count(self._handle)
        evaluated = []
        for case in cases:
            sizes = (Dims * self.inputs)(*(Dims.of(values) for values in case))
            values = [self._lib.layer_value(self._handle, i, sizes) for i in range(len(LAUNCH) + scalars)]
            evaluated.append({**dict(zip(LAUNCH, values, strict=False)), "scalars": values[len(LAUNCH) :]})
        code = ctypes.string_at(self._lib.layer_code(self._handle), self._lib.layer_code_size(self._handle))
        return {
            "tactic": tactic,
            "kernel": self._lib.layer_kernel(self._handle).decode(),
            "code": code.decode(),
            "cases": evaluated,
        }


def describe(trt: Any) -> dict[str, Any]:
    """Version and attributes of our plugins in the registry."""
    creators = [
        creator for creator in trt.get_plugin_registry().all_creators if creator.plugin_namespace == "tfanet"
    ]
    return {
        creator.name: {
            "version": creator.plugin_version,
            "attributes": [field.name for field in creator.field_names],
        }
        for creator in creators
    }


def build_layer(layer: Layer, item: dict[str, Any], result: dict[str, Any], recorder: Any) -> None:
    """The builder's steps for a layer and every tactic of `item`'s types; writes into `result`."""
    result["tensors"] = layer.tensors()
    result["combinations"] = layer.combinations()
    formats = {tuple(types): formats for types, formats in result["combinations"]}
    types = tuple(item["types"])
    if types not in formats:
        raise RuntimeError(f"{item['name']} does not take {', '.join(types)}")
    result["tactics"] = layer.configure(item["types"], formats[types])
    result["kernels"] = []
    for tactic in result["tactics"] or [0]:
        kernel = layer.launch(tactic, item["cases"])
        if recorder:
            pairs = zip(item["cases"], kernel["cases"], strict=True)
            kernel["errors"] = [recorder.launch_error(item, sizes, launch) for sizes, launch in pairs]
        result["kernels"].append(kernel)
