"""The precision file: read as written, and one line for a file that is not one."""

from __future__ import annotations

import json

import pytest

from tfanet.errors import UserError
from tfanet_export.precision import Precision

VALID = {
    "weights_sha256": "ab" * 32,
    "keep_fp32": ["stage1.embed"],
    "figures": {"pairs": 4},
    "format_version": 1,
}


def test_file_is_read_as_written(tmp_path):
    precision = Precision("ab" * 32, ("stage1.embed", "decoder.score"), {"oIoU_fp16": None})
    precision.write(tmp_path / "p.json")
    assert Precision.read(tmp_path / "p.json") == precision


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "p.json is invalid: Invalid JSON"),
        ("[]", "p.json is invalid: Input should be an object"),
        (json.dumps({"weights": 1}), "p.json is invalid: weights_sha256: Field required"),
        (json.dumps(VALID | {"extra": 1}), "p.json is invalid: extra: Unexpected keyword argument"),
        (json.dumps(VALID | {"keep_fp32": "stage1.embed"}), "p.json is invalid: keep_fp32: .* valid array"),
        (json.dumps(VALID | {"keep_fp32": [1]}), r"p.json is invalid: keep_fp32\[0\]: .* valid string"),
        (json.dumps(VALID | {"weights_sha256": None}), "p.json is invalid: weights_sha256: .* valid string"),
        (json.dumps(VALID | {"format_version": 2}), "p.json has format 2, this version reads 1"),
        (b"\xff\xfe", "p.json is invalid"),
    ],
)
def test_invalid_file_is_one_line(tmp_path, content, message):
    file = tmp_path / "p.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        Precision.read(file)
    assert "\n" not in str(caught.value)
