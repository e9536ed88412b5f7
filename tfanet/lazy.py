"""Lazy imports of a package's names (PEP 562), so that `--help` does not import PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from tfanet.deprecation import warn_renamed


def lazy_attributes(
    package: str, homes: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """A `__getattr__` for `package`: `homes` maps each name to the module to import it from.

    `renamed` maps former names, which are deprecated, to present ones.
    """

    def get(name: str) -> Any:
        if renamed and name in renamed:
            warn_renamed(f"{package}.{name}", renamed[name])
            name = renamed[name]
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return get
