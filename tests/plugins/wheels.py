"""TensorRT's Python bindings over its lean runtime: both are on the public index, TensorRT itself is not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from fetched import Unavailable, fetch

SOURCE = Path(__file__).with_name("stand_in.cpp")


def bindings(cache: Path, folder: Path, version: str, lean: str) -> None:
    """Fill `folder` with the bindings of `version` as `tensorrt` and with the libraries that they need.

    `lean` is the version of the lean runtime, of the same major version. Wheels are kept in `cache`: 45 MB to
    download, 110 MB unpacked. Raises `Unavailable`.
    """
    wheels = [f"tensorrt-cu12-bindings=={version}", f"tensorrt-lean-cu12-libs=={lean}"]
    kept = fetch(cache / f"{version}-over-{lean}", wheels)
    folder.mkdir()
    (folder / "tensorrt").symlink_to(kept / "tensorrt_bindings")
    _compile(folder, kept / "tensorrt_lean_libs", version.split(".")[0])


def _compile(folder: Path, lean: Path, major: str) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise Unavailable("no C++ compiler for the stand-in of TensorRT's libraries")
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
