"""The precision file: which blocks of a model stay FP32 in its FP16 form, and why."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfanet.blocks import require_blocks
from tfanet.checkpoint import weights_sha256
from tfanet.errors import UserError
from tfanet.files import require_file, write_json
from tfanet.model import TFANet
from tfanet.validation import from_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Precision:
    """The JSON file that `tfanet-eval drift --propose` writes and `tfanet-export --precision` reads."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    weights_sha256: str
    """Of the model that the search ran on (`tfanet.checkpoint.weights_sha256`)."""
    keep_fp32: tuple[str, ...]
    """Names of blocks (`tfanet.blocks`)."""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The search's measurements, for the user; export ignores them."""
    format_version: int = FORMAT_VERSION

    def write(self, path: str | Path) -> None:
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> Precision:
        """Read `path`. Raises `UserError` if it is missing or not a precision file of this version."""
        text = require_file(path, "precision file").read_bytes()
        advice = "tfanet-eval drift --fp16 --propose writes one"
        precision = from_json(cls, text, f"precision file {path}", advice)
        if precision.format_version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format {precision.format_version}, this version reads {FORMAT_VERSION}"
            )
        return precision

    def require_fit(self, model: TFANet) -> None:
        """Raise `UserError` if the file was made for other weights or names blocks that `model` lacks."""
        if self.weights_sha256 != weights_sha256(model):
            raise UserError(
                "the precision file was made for other weights; make one: tfanet-eval drift --fp16 --propose"
            )
        require_blocks(model, self.keep_fp32)
