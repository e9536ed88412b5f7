"""Validation of external data: strict types, and one line that names the invalid field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from typing_extensions import TypedDict

from tfanet.errors import UserError
from tfanet.validation import check_values, from_json, from_values


@dataclass(frozen=True)
class Build:
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    kind: Literal["onnx", "plan"]
    batch: tuple[int, int, int] = (1, 1, 8)
    share: float = 0.5


class Ref(TypedDict):
    ref_id: int
    split: str


def test_a_valid_document_becomes_the_dataclass():
    assert from_json(Build, '{"kind": "plan", "batch": [1, 2, 4], "share": 1}', "x") == Build(
        "plan", (1, 2, 4), 1
    )
    assert from_values(Build, {"kind": "onnx", "batch": (1, 2, 4)}, "x") == Build("onnx", (1, 2, 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "recipe is invalid: Invalid JSON"),
        ("[1]", "recipe is invalid: Input should be an object"),
        ("{}", "recipe is invalid: kind: Field required"),
        ('{"kind": "plane"}', "recipe is invalid: kind: Input should be 'onnx' or 'plan'"),
        ('{"kind": "plan", "batch": [1, "2", 4]}', r"recipe is invalid: batch\[1\]: .* valid integer"),
        ('{"kind": "plan", "batch": [1, true, 4]}', r"recipe is invalid: batch\[1\]: .* valid integer"),
        ('{"kind": "plan", "extra": 1}', "recipe is invalid: extra: Unexpected keyword argument"),
    ],
)
def test_an_invalid_document_names_its_first_invalid_field(text, message):
    with pytest.raises(UserError, match=f"^{message}.*; write it anew$"):
        from_json(Build, text, "recipe", "write it anew")


def test_plain_values_are_checked_in_place():
    refs = [{"ref_id": 1, "split": "val", "level": "all"}]
    assert check_values(list[Ref], refs, "refs")[0]["ref_id"] == 1
    with pytest.raises(UserError, match=r"^refs is invalid: \[0\]\.ref_id: Input should be a valid integer"):
        check_values(list[Ref], [{"ref_id": "1", "split": "val"}], "refs")
