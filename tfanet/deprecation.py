"""Former names of the Python API: they work for one version and warn with `DeprecationWarning`.

Command-line options have `tfanet.console.deprecated_options`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed_arguments(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that accepts keyword arguments under former names: `@renamed_arguments(lanes="contexts")`.

    The function raises `TypeError` if the former and the present name are both given.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> R:
            for former, present in names.items():
                if former in kwargs:
                    warn_renamed(f"{function.__qualname__}({former}=)", f"{present}=")
                    if present in kwargs:
                        raise TypeError(f"{function.__qualname__} got {present} and its former name {former}")
                    kwargs[present] = kwargs.pop(former)
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_property(former: str, present: str) -> property:
    """A property `former` that returns the attribute or method `present`."""

    def get(self: Any) -> Any:
        warn_renamed(f"{type(self).__name__}.{former}", present)
        return getattr(self, present)

    return property(get, doc=f"Deprecated name of `{present}`.")


def warn_renamed(former: str, present: str) -> None:
    """Warn that `former` is deprecated, at the line that called the caller of this function."""
    warnings.warn(f"{former} is deprecated; use {present}", DeprecationWarning, stacklevel=3)
