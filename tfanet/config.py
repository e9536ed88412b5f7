"""Every size of the model in one frozen dataclass, and the presets `tiny` and `base`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from tfanet.errors import UserError

_RANGES: dict[str, tuple[float, float]] = {
    "token_length": (3, 77),
    "vmamba_dims": (2, 8192),
    "vmamba_depths": (1, 256),
    "ssm_ratio": (0.25, 8),
    "ssm_state": (1, 16),
    "mlp_ratio": (0.25, 16),
    "drop_path": (0, 0.95),
    "mlam_dim": (1, 8192),
    "mlam_heads": (1, 256),
    "cfsm_blocks": (1, 64),
    "cssm_size": (1, 64),
    "decoder_dim": (1, 8192),
}
"""What a field may be; wide, and there to refuse a damaged or mistyped config before memory is asked for."""


@dataclass(frozen=True)
class TFANetConfig:
    """Sizes of a TFANet. The defaults are preset `base`, the paper's model.

    Stage i = 1..4 works at stride 4, 8, 16, 32 of the image with C_i = `vmamba_dims[i-1]` channels.
    """

    image_size: int = 480
    """S: the model sees S x S images; a multiple of 32."""
    token_length: int = 17
    """L: tokens a sentence, SOT and EOT included (17 for RefCOCO and RefCOCO+, 22 for G-Ref)."""

    vmamba_dims: tuple[int, int, int, int] = (128, 256, 512, 1024)
    vmamba_depths: tuple[int, int, int, int] = (2, 2, 15, 2)
    ssm_ratio: float = 2.0
    """d_inner = ssm_ratio * C_i in every SS2D."""
    ssm_state: int = 1
    """N: states a channel."""
    mlp_ratio: float = 4.0
    drop_path: float = 0.6
    """Stochastic depth of the last VSS block; grows linearly from 0 at the first."""

    text_tower: str = "ViT-L-14"
    """An open_clip model name, or `tiny` for the project's own small tower."""

    mlam_dim: int = 144
    """d: width of MLAM's queries, keys and values over all heads."""
    mlam_heads: int = 9
    cfsm_blocks: int = 2
    cssm_size: int = 16
    """CSSM scans the channel axis of the fusion block resized to cssm_size x cssm_size pixels."""
    decoder_dim: int = 512
    """D: width of every level of the WFDM decoder."""

    def __post_init__(self) -> None:
        wrong = [f.name for f in dataclasses.fields(self) if not _same_kind(getattr(self, f.name), f.default)]
        if wrong:
            raise UserError(f"config fields of a wrong type: {', '.join(wrong)}")
        if not 32 <= self.image_size <= 4096 or self.image_size % 32:
            raise UserError(f"image_size must be a multiple of 32 from 32 to 4096, not {self.image_size}")
        for name, (low, high) in _RANGES.items():
            values = getattr(self, name)
            if not all(
                low <= value <= high for value in (values if isinstance(values, tuple) else (values,))
            ):
                raise UserError(f"{name} must be from {low} to {high}, not {values}")
        if self.mlam_dim % self.mlam_heads:
            raise UserError(f"mlam_dim {self.mlam_dim} is not divisible by mlam_heads {self.mlam_heads}")

    def to_json(self) -> str:
        """The config as one line of JSON, as it travels in a checkpoint's metadata."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TFANetConfig:
        """The inverse of `to_json`; `UserError` on anything but a complete, known set of fields."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"the model's config is not JSON: {error}") from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Any) -> TFANetConfig:
        """A config from `dataclasses.asdict`'s dictionary; `UserError` when fields are missing or unknown."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != fields:
            odd = sorted(set(values) ^ fields) if isinstance(values, dict) else type(values).__name__
            raise UserError(f"the model's config does not fit this version of tfanet: {odd}")
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**given)


def _same_kind(value: Any, default: Any) -> bool:
    """Whether `value` may stand where `default` does: same type, an int for a float, as many ints."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) == len(default) and all(type(v) is int for v in value)
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)


PRESETS: dict[str, TFANetConfig] = {
    "tiny": TFANetConfig(
        image_size=96,
        vmamba_dims=(24, 48, 96, 128),
        vmamba_depths=(1, 1, 2, 1),
        ssm_ratio=1.0,
        mlp_ratio=2.0,
        drop_path=0.0,
        text_tower="tiny",
        mlam_dim=32,
        mlam_heads=2,
        cfsm_blocks=1,
        cssm_size=8,
        decoder_dim=32,
    ),
    "base": TFANetConfig(),
}


def preset(name: str, **overrides: Any) -> TFANetConfig:
    """The preset `name` with some fields replaced; `UserError` when the name or a field is unknown."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    try:
        return dataclasses.replace(PRESETS[name], **overrides)
    except TypeError as error:
        raise UserError(f"unknown config field: {error}") from error
