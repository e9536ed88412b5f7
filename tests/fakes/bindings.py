"""NVIDIA's `tensorrt` bindings without TensorRT: wheels of the public index over a stub of its libraries.

The index has the bindings and the lean runtime, with its real plugin registry, but not the libraries of
builder and parser that the bindings link. `nvinfer_stub.cpp` provides their symbols.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

from fetched import Unavailable, fetch

SOURCE = Path(__file__).with_name("nvinfer_stub.cpp")
LEAN = {"10": "10.16.1.11", "11": "11.4.0.106"}
"""The lean runtime for each major version of the bindings. Most older versions have no lean wheel."""


def make_bindings(cache: Path, folder: Path, version: str) -> None:
    """Fill `folder` with the bindings of `version`, as `tensorrt`, and the libraries that they need.

    Wheels are kept in `cache`: 45 MB to download, 110 MB unpacked. Raises `Unavailable` without network or
    C++ compiler.
    """
    major = version.split(".")[0]
    wheels = [f"tensorrt-cu12-bindings=={version}", f"tensorrt-lean-cu12-libs=={LEAN[major]}"]
    unpacked = fetch(cache / f"{version}-over-{LEAN[major]}", wheels)
    folder.mkdir()
    (folder / "tensorrt").symlink_to(unpacked / "tensorrt_bindings")
    _compile(folder, unpacked / "tensorrt_lean_libs", major)


def load_stub(folder: Path) -> ctypes.CDLL:
    """Load the libraries in `folder` into this process; returns the stub. To be called before the import."""
    for name in ("libnvinfer_plugin", "libnvonnxparser", "libnvinfer"):
        (path,) = folder.glob(f"{name}.so.*")
        stub = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    for name in ("layer_open", "layer_tensor", "layer_code"):
        getattr(stub, name).restype = ctypes.c_void_p
    stub.layer_kernel.restype = ctypes.c_char_p
    stub.layer_value.restype = ctypes.c_int64
    return stub


def _compile(folder: Path, lean: Path, major: str) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise Unavailable("no C++ compiler for the stub of TensorRT's libraries")
    common = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", f"-DTENSORRT_MAJOR={major}"]
    lean_flags = ["-Wl,--no-as-needed", str(lean / f"libnvinfer_lean.so.{major}"), f"-Wl,-rpath,{lean}"]
    sources = {
        "nvinfer": [str(SOURCE), *lean_flags],
        "nvonnxparser": ["-x", "c++", "/dev/null"],
        "nvinfer_plugin": ["-x", "c++", "/dev/null"],
    }
    for name, arguments in sources.items():
        soname = f"lib{name}.so.{major}"
        flags = [f"-Wl,-soname,{soname}", "-o", str(folder / soname)]
        subprocess.run([*common, *arguments, *flags], check=True, capture_output=True)
