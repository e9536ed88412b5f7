"""Classes and objects with exactly the names and parameters of NVIDIA's bindings, by their docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any


def parameters(real: Any, method: str) -> list[list[str]]:
    """The parameter names of each overload of a pybind11 method, without `self`."""
    pattern = rf"^(?:\d+\. )?{method}\(self: [^,)]+(.*)\) ->"
    overloads = re.findall(pattern, getattr(real, method).__doc__, re.MULTILINE)
    return [re.findall(r", (\w+): ", text) for text in overloads]


def like(real: Any) -> Any:
    """A class decorator: public methods and attributes must exist in `real`, methods with its parameters."""

    def check(cls: type) -> type:
        for name, function in vars(cls).items():
            if name.startswith("_"):
                continue
            assert hasattr(real, name), f"{real.__name__} has no {name}"
            if callable(function):
                actual, known = [*inspect.signature(function).parameters][1:], parameters(real, name)
                assert actual in known, f"{real.__name__}.{name} takes {known}, not {actual}"

        def set_attribute(self: Any, name: str, value: Any) -> None:
            if not name.startswith("_") and not hasattr(real, name):
                raise AttributeError(f"{real.__name__} has no {name}")
            object.__setattr__(self, name, value)

        cls.__setattr__ = set_attribute
        return cls

    return check


class Recorder:
    """An object of class `real` that appends each call and assignment to `log` as `[name, *arguments]`.

    `results` are the attributes' values and the methods' results, or functions that compute them. A name that
    `real` does not have, or more arguments than it takes, raises as the real object would.
    """

    def __init__(self, real: Any, log: list[list[Any]], **results: Any) -> None:
        vars(self).update(_real=real, _log=log, _results=results)

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._real, name, None)
        if member is None:
            raise AttributeError(f"{self._real.__name__} has no {name}")
        if not callable(member):
            return self._results[name]
        known = parameters(self._real, name)

        def call(*arguments: Any) -> Any:
            if not any(len(arguments) <= len(names) for names in known):
                raise TypeError(f"{self._real.__name__}.{name} takes {known}, not {len(arguments)} arguments")
            self._log.append([name, *map(_loggable, arguments)])
            result = self._results.get(name)
            return result(*arguments) if callable(result) else result

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(getattr(self._real, name, None), property):
            raise AttributeError(f"{self._real.__name__} has no attribute {name} that can be set")
        self._log.append([name, _loggable(value)])
        self._results[name] = value


def _loggable(value: Any) -> Any:
    """`value` for JSON: enum members by name, objects by class."""
    if isinstance(value, Recorder):
        return value._real.__name__
    if isinstance(value, tuple):
        return [*value]
    if isinstance(value, (int, str)) and not hasattr(value, "name"):
        return value
    return getattr(value, "name", None) or type(value).__name__
