"""The times of TensorRT's kernels, kept from build to build in the user's cache folder.

One file a version and GPU, for TensorRT takes no other. What is kept there may be lost at any time: a build
without it is as good, and slower.
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
    """Where the times of this version on the GPU of this machine are kept."""
    import torch
    from platformdirs import user_cache_path

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no-gpu"
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"tensorrt-{version}-{capability}-{gpu}-{_kernels()}")
    return user_cache_path("tfanet", appauthor=False) / "timing" / f"{words}.cache"


def _kernels() -> str:
    """Our kernels in eight letters: TensorRT takes the times of a plugin for those of its next version."""
    sources = sorted(Path(tfanet.__file__).with_name("ops").glob("*_triton.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]


def load(config: Any, version: str, capability: str) -> None:
    """Give `config` the times that are kept, or none."""
    path = path_of(version, capability)
    kept = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(kept), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def save(config: Any, version: str, capability: str) -> str:
    """Keep the times of a finished build together with those that other builds kept meanwhile.

    Where they cannot be kept, the answer says why, for the plan is none the worse; else it is empty.
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
        return f"kernels' times were not kept: {error}"
    return ""
