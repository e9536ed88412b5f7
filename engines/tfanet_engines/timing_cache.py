"""TensorRT's timing cache, kept between builds in the user's cache folder.

One file per version and GPU, as TensorRT requires. The files may be deleted at any time: a build without one
is slower but not different.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import tfanet
from tfanet.errors import UserError
from tfanet.files import atomic_path
from tfanet_engines.permissions import private_folder


def path_of(version: str, capability: str) -> Path:
    """Path of the timing cache for a version and this machine's GPU."""
    import torch
    from platformdirs import user_cache_path

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no-gpu"
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"tensorrt-{version}-{capability}-{gpu}-{_kernels()}")
    return user_cache_path("tfanet", appauthor=False) / "timing" / f"{words}.cache"


def _kernels() -> str:
    """Eight hex digits of our kernels' hash: TensorRT would reuse timings of a plugin's earlier version."""
    sources = sorted(Path(tfanet.__file__).with_name("ops").glob("*_triton.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]


def load(config: Any, version: str, capability: str) -> None:
    """Set the saved timing cache in `config`, or an empty one."""
    path = path_of(version, capability)
    saved = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(saved), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def save(config: Any, version: str, capability: str) -> str:
    """Save the timings of a finished build, combined with those that other builds have saved meanwhile.

    Returns a warning if that fails, else an empty string; the plan is not affected.
    """
    path, cache = path_of(version, capability), config.get_timing_cache()
    try:
        private_folder(path.parent)
        with FileLock(path.with_suffix(".lock"), timeout=30):
            if path.is_file():
                cache.combine(config.create_timing_cache(path.read_bytes()), True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(bytes(cache.serialize()))
    except (OSError, UserError, Timeout) as error:
        return f"kernel timings were not saved: {error}"
    return ""
