"""Validation of external data (configs, sidecars, results, REFER files) against declared types, by pydantic.

Declare the content of a file as a dataclass or a `typing_extensions.TypedDict`. Types are strict: a string is
not converted to a number, nor 1 to true. A TypedDict drops unknown keys. A dataclass rejects them with:

    __pydantic_config__ = {"extra": "forbid"}
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from tfanet.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def from_json(kind: type[T], text: str | bytes, what: str, advice: str = "") -> T:
    """JSON text as a `kind`; lists become tuples where `kind` has tuples.

    Args:
        kind: a dataclass, a TypedDict, or another annotation such as `dict[str, int]`.
        text: the JSON document.
        what: names the document in messages: "sidecar model.plan.json".
        advice: what to do about an invalid document, appended to the message.

    Raises `UserError`, which names the first invalid field, if `text` is not JSON or not a `kind`.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise _invalid(error, what, advice) from error


def from_values(kind: type[T], values: Any, what: str, advice: str = "") -> T:
    """As `from_json` for plain values, such as those of a TOML file; tuples count as lists."""
    return from_json(kind, json.dumps(values, default=str), what, advice)


def check_values(kind: type[T], values: Any, what: str, advice: str = "") -> T:
    """As `from_json` for Python values as they are; for TypedDicts and containers, not for dataclasses."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(values, strict=True)
    except ValidationError as error:
        raise _invalid(error, what, advice) from error


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _invalid(error: ValidationError, what: str, advice: str) -> UserError:
    """One line about the first invalid field: `WHAT is invalid: batch[2]: Field required`."""
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    field = f"{place.removeprefix('.')}: " if place else ""
    return UserError(f"{what} is invalid: {field}{first['msg']}" + (f"; {advice}" if advice else ""))
