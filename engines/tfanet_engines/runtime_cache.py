"""Compiled kernels of TensorRT-RTX plans in the user's cache folder.

TensorRT-RTX compiles a plan's kernels on the GPU that first runs it; the cache saves that time at the next
start. It contains code, so the file must be the user's and writable by nobody else. The library rejects a
cache of another GPU, version or driver; it is then replaced.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from tfanet.errors import UserError
from tfanet.files import atomic_path
from tfanet_engines.permissions import private_folder, require_own


def cache_path(plan_sha256: str, version: str, gpu: str) -> Path:
    """Path of a plan's kernels, for a version of TensorRT-RTX and the name of a GPU."""
    from platformdirs import user_cache_path

    machine = re.sub(r"[^\w.-]+", "-", f"{version}-{gpu}")
    return user_cache_path("tfanet", appauthor=False) / "kernels" / f"{plan_sha256[:32]}-{machine}.cache"


class RuntimeCache:
    """A file, and the library's cache object `cache` that is set in a runtime config."""

    def __init__(self, config: Any, path: Path) -> None:
        self.cache = config.create_runtime_cache()
        self._path = path
        self._saved = b""
        if path.exists():
            require_own(path)
            stored = path.read_bytes()
            if stored and self.cache.deserialize(stored):
                self._saved = stored
        config.set_runtime_cache(self.cache)

    def save(self) -> None:
        """Write the cache if it has changed; warns if that fails, as the next start is only slower."""
        blob = self.cache.serialize()
        data = bytes(blob) if blob is not None else b""
        if not data or data == self._saved:
            return
        try:
            private_folder(self._path.parent)
            with atomic_path(self._path, mode=0o600) as temporary:
                temporary.write_bytes(data)
        except UserError as error:
            warnings.warn(f"compiled kernels were not saved: {error}", RuntimeWarning, stacklevel=2)
        else:
            self._saved = data
