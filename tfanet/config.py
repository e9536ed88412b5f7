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
"""The form in which `TFANetConfig.to_dict` writes a config."""
_FORMAT_1 = "tfanet-1"
_SINCE_FORMAT_2 = frozenset(
    {"alignment", "fusion", "decoder", "transformer_dim", "transformer_heads", "conv_decoder_dim"}
)
"""Fields that tfanet-1 lacks. It knew the full model only, which is what their defaults say."""

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

    alignment: Alignment = "mlam"
    """The Knowledge Plus Stage; anything but `mlam` is a variant of Table 3 (`VARIANTS`)."""
    mlam_dim: int = 144
    """d: width of MLAM's queries, keys and values over all heads."""
    mlam_heads: int = 9
    transformer_dim: int = 352
    """Width of the joint self-attention that takes MLAM's place with alignment `transformer`."""
    transformer_heads: int = 8

    fusion: FusionKind = "cfsm"
    """The Knowledge Fusion Stage; `conv` is the baseline's 1x1 convolution."""
    cfsm_blocks: int = 2
    cssm_size: int = 16
    """CSSM scans the channel axis of the fusion block resized to cssm_size x cssm_size pixels."""

    decoder: Decoder = "wfdm"
    """The Knowledge Intensification Stage; `conv` is the baseline's decoder, which sees no words."""
    decoder_dim: int = 512
    """D: width of every level of the WFDM decoder."""
    conv_decoder_dim: int = 384
    """The same for decoder `conv`."""

    def __post_init__(self) -> None:
        wrong = [f.name for f in dataclasses.fields(self) if not _same_kind(getattr(self, f.name), f.default)]
        if wrong:
            raise UserError(f"config fields of a wrong type: {', '.join(wrong)}")
        require_image_size(self.image_size)
        for name, (low, high) in _RANGES.items():
            values = getattr(self, name)
            if not all(
                low <= value <= high for value in (values if isinstance(values, tuple) else (values,))
            ):
                raise UserError(f"{name} must be from {low} to {high}, not {values}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name in ("mlam", "transformer"):
            dim, heads = getattr(self, f"{name}_dim"), getattr(self, f"{name}_heads")
            if dim % heads:
                raise UserError(f"{name}_dim {dim} is not divisible by {name}_heads {heads}")

    @property
    def word_dims(self) -> tuple[int, ...]:
        """Channels of the word features that stage i hands to the decoder: MLAM's d, without MLAM C_i."""
        return (self.mlam_dim,) * 4 if self.alignment == "mlam" else self.vmamba_dims

    def to_dict(self) -> dict[str, Any]:
        """The config as it travels in files: `format` and every field."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

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
        """A config from `to_dict`'s dictionary, of this format or of tfanet-1, which bore no `format`.

        Raises `UserError` when the format is another, or when fields are missing or unknown.
        """
        if not isinstance(values, dict):
            raise UserError(
                f"the model's config does not fit this version of tfanet: {type(values).__name__}"
            )
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        fields = {field.name for field in dataclasses.fields(cls)}
        written = given.pop("format", _FORMAT_1)
        if written == _FORMAT_1:
            fields -= _SINCE_FORMAT_2
        elif written != FORMAT:
            raise UserError(f"the model's config has format {written!r}; this tfanet reads up to {FORMAT}")
        if odd := sorted(given.keys() ^ fields):
            raise UserError(f"the model's config does not fit this version of tfanet: {odd}")
        return cls(**given)


def require_image_size(size: int) -> None:
    """`UserError` where no model has images of `size` x `size` pixels."""
    if not 32 <= size <= 4096 or size % 32:
        raise UserError(f"image_size must be a multiple of 32 from 32 to 4096, not {size}")


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

    `UserError` when a name or a field is unknown.
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
