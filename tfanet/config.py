"""Every size of the model in one frozen dataclass, and the presets `tiny` and `base`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tfanet.errors import UserError

Alignment = Literal["none", "transformer", "mlam"]
FusionKind = Literal["conv", "cfsm"]
Decoder = Literal["conv", "wfdm"]

FORMAT = "tfanet-2"
"""The format of the configs that `TFANetConfig.to_dict` writes."""
_FORMAT_1 = "tfanet-1"
_SINCE_FORMAT_2 = frozenset(
    {"alignment", "fusion", "decoder", "transformer_dim", "transformer_heads", "conv_decoder_dim"}
)
"""Fields that tfanet-1 lacks. Its only model was the full one, which their defaults describe."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "alignment": get_args(Alignment),
    "fusion": get_args(FusionKind),
    "decoder": get_args(Decoder),
}
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
    "transformer_dim": (1, 8192),
    "transformer_heads": (1, 256),
    "cfsm_blocks": (1, 64),
    "cssm_size": (1, 64),
    "decoder_dim": (1, 8192),
    "conv_decoder_dim": (1, 8192),
}
"""Allowed values of a field; wide, to reject a damaged or mistyped config before allocating memory."""


@dataclass(frozen=True)
class TFANetConfig:
    """Sizes of a TFANet. The defaults are preset `base`, the paper's model.

    Stage i = 1..4 works at stride 4, 8, 16, 32 of the image with C_i = `vmamba_dims[i-1]` channels.
    """

    image_size: int = 480
    """S: the model's input is S x S pixels; a multiple of 32."""
    token_length: int = 17
    """L: tokens per expression, including SOT and EOT (17 for RefCOCO and RefCOCO+, 22 for G-Ref)."""

    vmamba_dims: tuple[int, int, int, int] = (128, 256, 512, 1024)
    vmamba_depths: tuple[int, int, int, int] = (2, 2, 15, 2)
    ssm_ratio: float = 2.0
    """d_inner = ssm_ratio * C_i in every SS2D."""
    ssm_state: int = 1
    """N: states per channel."""
    mlp_ratio: float = 4.0
    drop_path: float = 0.6
    """Stochastic depth of the last VSS block; it rises linearly from 0 at the first."""

    text_tower: str = "ViT-L-14"
    """An open_clip model name, or `tiny` for this project's small text tower."""

    alignment: Alignment = "mlam"
    """The Knowledge Plus Stage; anything but `mlam` is a variant of Table 3 (`VARIANTS`)."""
    mlam_dim: int = 144
    """d: width of MLAM's queries, keys and values over all heads."""
    mlam_heads: int = 9
    transformer_dim: int = 352
    """Width of the joint self-attention that replaces MLAM with alignment `transformer`."""
    transformer_heads: int = 8

    fusion: FusionKind = "cfsm"
    """The Knowledge Fusion Stage; `conv` is the baseline's 1x1 convolution."""
    cfsm_blocks: int = 2
    cssm_size: int = 16
    """CSSM scans the channel axis of the fusion block resized to cssm_size x cssm_size pixels."""

    decoder: Decoder = "wfdm"
    """The Knowledge Intensification Stage; `conv` is the baseline's decoder, which does not use the text."""
    decoder_dim: int = 512
    """D: width of every level of the WFDM decoder."""
    conv_decoder_dim: int = 384
    """The same for decoder `conv`."""

    def __post_init__(self) -> None:
        fields = dataclasses.fields(self)
        invalid = [f.name for f in fields if not _has_type_of(getattr(self, f.name), f.default)]
        if invalid:
            raise UserError(f"config fields of a wrong type: {', '.join(invalid)}")
        require_image_size(self.image_size)
        for name, (low, high) in _RANGES.items():
            values = getattr(self, name)
            if not all(
                low <= value <= high for value in (values if isinstance(values, tuple) else (values,))
            ):
                raise UserError(f"{name} must be from {low} to {high}, not {values}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("mlam", "transformer"):
            dim, heads = getattr(self, f"{name}_dim"), getattr(self, f"{name}_heads")
            if dim % heads:
                raise UserError(f"{name}_dim {dim} is not divisible by {name}_heads {heads}")

    @property
    def word_dims(self) -> tuple[int, ...]:
        """Channels of the word features from stage i to the decoder: d with MLAM, C_i without."""
        return (self.mlam_dim,) * 4 if self.alignment == "mlam" else self.vmamba_dims

    def to_dict(self) -> dict[str, Any]:
        """The config as stored in files: `format` and every field."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> TFANetConfig:
        """The inverse of `to_json`. Raises `UserError` if the text is not JSON, and as `from_dict`."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"the model's config is not JSON: {error}") from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Any) -> TFANetConfig:
        """The inverse of `to_dict`; also reads tfanet-1, which has no `format`.

        Raises `UserError` for another format, and for missing, unknown or invalid fields.
        """
        if not isinstance(values, dict):
            raise UserError(
                f"the model's config does not fit this version of tfanet: {type(values).__name__}"
            )
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        fields = {field.name for field in dataclasses.fields(cls)}
        written_format = given.pop("format", _FORMAT_1)
        if written_format == _FORMAT_1:
            fields -= _SINCE_FORMAT_2
        elif written_format != FORMAT:
            raise UserError(
                f"the model's config has format {written_format!r}; this tfanet reads up to {FORMAT}"
            )
        if mismatched := sorted(given.keys() ^ fields):
            raise UserError(f"the model's config does not fit this version of tfanet: {mismatched}")
        return cls(**given)


def require_image_size(size: int) -> None:
    """Raises `UserError` unless `size` is a valid `TFANetConfig.image_size`."""
    if not 32 <= size <= 4096 or size % 32:
        raise UserError(f"image_size must be a multiple of 32 from 32 to 4096, not {size}")


def _has_type_of(value: Any, default: Any) -> bool:
    """Whether `value` has the type of `default`; an int counts as float, tuples need as many ints."""
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
        transformer_dim=32,
        transformer_heads=2,
        cfsm_blocks=1,
        cssm_size=8,
        decoder_dim=32,
        conv_decoder_dim=32,
    ),
    "base": TFANetConfig(),
}

VARIANTS: dict[str, dict[str, str]] = {
    "a": {"alignment": "none", "fusion": "conv", "decoder": "conv"},
    "b": {"alignment": "none", "fusion": "cfsm", "decoder": "conv"},
    "c": {"alignment": "transformer", "fusion": "cfsm", "decoder": "conv"},
    "d": {"alignment": "mlam", "fusion": "cfsm", "decoder": "conv"},
    "e": {"alignment": "mlam", "fusion": "cfsm", "decoder": "wfdm"},
}
"""The rows of the paper's Table 3 as overrides of a preset; (e) is the full model."""


def preset(name: str, *, variant: str | None = None, **overrides: Any) -> TFANetConfig:
    """The preset `name` as row `variant` of Table 3 (None: the full model), with some fields replaced.

    Raises `UserError` for an unknown name or field.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    if variant is not None and variant not in VARIANTS:
        raise UserError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    overrides = VARIANTS.get(variant or "", {}) | overrides
    try:
        return dataclasses.replace(PRESETS[name], **overrides)
    except TypeError as error:
        raise UserError(f"unknown config field: {error}") from error
