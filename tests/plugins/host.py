"""TensorRT's builder, played for plugin layers over NVIDIA's bindings: `host.py FOLDER ANSWER < request`.

FOLDER is what `wheels.py` makes. The request is JSON: modules to import besides our own, and layers, each
with the types and sizes of its inputs and the GPU to compile for. ANSWER is written, JSON too: what the
bindings and the plugins said at each step. With `interpreted` nothing is compiled; kernels run in Triton's
interpreter instead.

This runs in a process of its own, for the bindings are not TensorRT and nobody else shall find them.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from pathlib import Path
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


def load_stand_in(folder: Path) -> ctypes.CDLL:
    for name in ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin"):
        (path,) = folder.glob(f"{name}.so.*")
        library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        if name == "libnvinfer":
            stand_in = library
    pointers = ("layer_open", "layer_tensor", "layer_code")
    for name in pointers:
        getattr(stand_in, name).restype = ctypes.c_void_p
    stand_in.layer_kernel.restype = ctypes.c_char_p
    stand_in.layer_value.restype = ctypes.c_int64
    return stand_in


class Layer:
    """One plugin layer, from its creation to its kernel; every call raises where the plugin fails."""

    def __init__(self, stand_in: ctypes.CDLL, trt: Any, name: str, inputs: list[dict]) -> None:
        self._lib, self._trt, self.inputs = stand_in, trt, len(inputs)
        descs = (DynamicTensorDesc * len(inputs))(*(self._desc(**tensor) for tensor in inputs))
        handle = stand_in.layer_open(b"tfanet", name.encode(), descs, len(inputs))
        if not handle:
            raise RuntimeError(f"tfanet::{name} cannot be created")
        self._handle = ctypes.c_void_p(handle)
        self.outputs = stand_in.layer_outputs(self._handle)
        self.width = self.inputs + self.outputs

    def _desc(self, type: str, min: list[int], opt: list[int], max: list[int]) -> DynamicTensorDesc:
        fixed = [low if low == high else -1 for low, high in zip(min, max, strict=True)]
        desc = TensorDesc(Dims.of(fixed), int(getattr(self._trt.DataType, type)), 0, -1.0)
        return DynamicTensorDesc(desc, Dims.of(min), Dims.of(max), Dims.of(opt))

    def tensors(self) -> list[dict[str, Any]]:
        found = []
        for index in range(self.width):
            address = self._lib.layer_tensor(self._handle, index)
            tensor = DynamicTensorDesc.from_address(address)
            found.append(
                {
                    "type": self._trt.DataType(tensor.desc.type).name,
                    "sizes": tensor.desc.dims.list(),
                    "min": tensor.min.list(),
                    "opt": tensor.opt.list(),
                    "max": tensor.max.list(),
                }
            )
        return found

    def combinations(self) -> list[tuple[list[str], list[str]]]:
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
        """The kernel of this tactic, and for the inputs' sizes in each case grid, block, scalars."""
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
    """The registry's own view of our plugins."""
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


def walk(layer: Layer, item: dict[str, Any], found: dict[str, Any], recorder: Any) -> None:
    """Every step for one layer, every tactic of one combination of types; into `found`."""
    found["tensors"] = layer.tensors()
    found["combinations"] = layer.combinations()
    formats = {tuple(types): formats for types, formats in found["combinations"]}
    types = tuple(item["types"])
    if types not in formats:
        raise RuntimeError(f"{item['name']} does not take {', '.join(types)}")
    found["tactics"] = layer.configure(item["types"], formats[types])
    found["kernels"] = []
    for tactic in found["tactics"] or [0]:
        kernel = layer.launch(tactic, item["cases"])
        if recorder:
            pairs = zip(item["cases"], kernel["cases"], strict=True)
            kernel["errors"] = [recorder.launch_error(item, sizes, launch) for sizes, launch in pairs]
        found["kernels"].append(kernel)


def main() -> None:
    folder, request = Path(sys.argv[1]), json.load(sys.stdin)
    stand_in = load_stand_in(folder)
    sys.path[:0] = [str(folder), *request["path"]]
    import tensorrt as trt

    from tfanet_plugins import register_all

    operations = register_all()
    for module in request["modules"]:
        importlib.import_module(module)
    recorder, answers = None, []
    if request["interpreted"]:
        import simulate

        from tfanet_plugins import aot

        recorder = aot.compile_ptx = simulate.Recorder()
    for item in request["layers"]:
        found: dict[str, Any] = {}
        register_all(item["capability"])
        try:
            walk(Layer(stand_in, trt, item["name"], item["inputs"]), item, found, recorder)
            if recorder:
                found["jit_error"] = simulate.jit_error(trt, item)
        except RuntimeError as error:
            found["failed"] = str(error)
        answers.append(found)
    answer = {"operations": operations, "creators": describe(trt), "layers": answers}
    Path(sys.argv[2]).write_text(json.dumps({"version": trt.__version__, **answer}), encoding="utf-8")
    # The bindings' objects have no owner here who could take them down in the right order.
    os._exit(0)


if __name__ == "__main__":
    main()
