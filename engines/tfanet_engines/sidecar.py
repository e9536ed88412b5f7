"""The description beside `model.onnx` and `model.plan`, in `model.onnx.json` and `model.plan.json`.

Plans and ONNX files stay raw, so that other tools read them; what they are, what proves it and how to make
them again is said here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tfanet.config import TFANetConfig
from tfanet.errors import UserError
from tfanet.files import require_file, sha256, write_json
from tfanet.signature import signature_of

FORMAT_VERSION = 4
MEAN_STD = "the graph subtracts ImageNet's mean and divides by its deviation"


@dataclass(frozen=True)
class Sidecar:
    """Everything but the weights. `Sidecar.of` fills in what follows from the config."""

    kind: Literal["onnx", "plan"]
    config: dict[str, Any]
    """`TFANetConfig.to_dict()`."""
    weights_sha256: str | None
    """Identity of the model's weights (`tfanet.checkpoint.weights_sha256`); None when it is not known."""
    precision: Literal["fp32", "fp16"]
    proof: dict[str, Any]
    """What was counted in the file to know its precision, e.g. `half_weight_share`, 0..1."""
    builder: str
    """The program that wrote the file: `torch.onnx`, `tensorrt_rtx` or `tensorrt`."""
    builder_version: str
    compute_capabilities: list[str] | None
    """The GPU generations a plan is for (`tfanet_engines.targets.fits`); None for an ONNX file."""
    version_compatible: bool
    """Whether other versions of the builder's library open the plan too."""
    batch: list[int] | None
    """Smallest, usual and largest batch of a plan; None for an ONNX file, which takes any."""
    onnx_sha256: str
    file_sha256: str
    rebuild: str
    """The command that makes the file again."""
    cost: dict[str, Any]
    """What making the file took and gave: `seconds`, `peak_memory_bytes`, `bytes`, `nodes` or `layers`."""
    parity: dict[str, Any] | None
    """`ParityFigures.to_dict()` against PyTorch, where it could be measured."""
    signature: dict[str, list[dict[str, Any]]]
    tokenizer: dict[str, Any]
    preprocessing: dict[str, Any]
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(
        cls,
        config: TFANetConfig,
        *,
        kind: Literal["onnx", "plan"],
        weights_sha256: str | None,
        precision: Literal["fp32", "fp16"],
        proof: dict[str, Any],
        builder: str,
        builder_version: str,
        onnx_sha256: str,
        file_sha256: str,
        rebuild: str,
        cost: dict[str, Any],
        compute_capabilities: Sequence[str] | None = None,
        version_compatible: bool = False,
        batch: Sequence[int] | None = None,
        parity: dict[str, Any] | None = None,
    ) -> Sidecar:
        """A sidecar whose config, signature, tokenizer and preprocessing are those of `config`."""
        signature = signature_of(config)
        return cls(
            kind=kind,
            config=_plain(config.to_dict()),
            weights_sha256=weights_sha256,
            precision=precision,
            proof=proof,
            builder=builder,
            builder_version=builder_version,
            compute_capabilities=None if compute_capabilities is None else [*compute_capabilities],
            version_compatible=version_compatible,
            batch=None if batch is None else [*batch],
            onnx_sha256=onnx_sha256,
            file_sha256=file_sha256,
            rebuild=rebuild,
            cost=cost,
            parity=parity,
            signature=_plain({
                "inputs": [dataclasses.asdict(spec) for spec in signature.inputs],
                "outputs": [dataclasses.asdict(spec) for spec in signature.outputs],
            }),
            tokenizer={"name": "CLIP BPE, lower case", "length": config.token_length, "padding": 0},
            preprocessing={
                "size": config.image_size,
                "resize": "bilinear, antialiased, aspect not kept",
                "channels": "RGB, uint8 0..255, last axis",
                "normalisation": MEAN_STD,
            },
        )  # fmt: skip

    def write(self, model_path: str | Path) -> Path:
        """Write beside `model_path`, atomically; the sidecar's path is returned."""
        path = sidecar_path(model_path)
        write_json(path, dataclasses.asdict(self))
        return path

    @classmethod
    def read(cls, model_path: str | Path) -> Sidecar:
        """The sidecar of `model_path`; `UserError` when it is missing, malformed or of another version."""
        model_path = Path(model_path)
        path = sidecar_path(model_path)
        again = f"make {model_path.name} again with: {_command(model_path)}"
        if not path.exists():
            raise UserError(f"{path} is missing; keep it beside {model_path.name}, or {again}")
        require_file(path, "sidecar")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"sidecar {path} is no JSON ({error}); {again}") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        if not isinstance(values, dict) or "format_version" not in values:
            raise UserError(f"{path} is no sidecar of tfanet; {again}")
        if values["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"sidecar {path} has format version {values['format_version']}, this tfanet reads "
                f"{FORMAT_VERSION}; install the tfanet that wrote it, or {again}"
            )
        if problem := _problem(values):
            raise UserError(f"sidecar {path} is malformed: {problem}; {again}")
        sidecar = cls(**values)
        sidecar.model_config()
        return sidecar

    def check_file(self, model_path: str | Path) -> None:
        """Raise `UserError` unless `model_path` is, byte for byte, the file this sidecar was written for."""
        path = require_file(model_path, self.kind)
        self.check_digest(path, model_sha256(path))

    def check_digest(self, path: Path, digest: str) -> None:
        """The same for the SHA-256 of what was read from `path`."""
        if digest != self.file_sha256:
            raise UserError(f"{path} is truncated or altered, not the file of its sidecar; {self.remedy}")

    def model_config(self) -> TFANetConfig:
        """The model's config; `UserError` when this version of tfanet does not know its fields."""
        return TFANetConfig.from_dict(self.config)

    @property
    def remedy(self) -> str:
        """What to do when the file cannot be used as it is."""
        return f"make it again with: {self.rebuild}"


def model_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a model file, and of its external weights after it where there are some."""
    weights = external_data_path(path)
    own = sha256(path)
    return hashlib.sha256(f"{own} {sha256(weights)}".encode()).hexdigest() if weights.exists() else own


def external_data_path(model_path: str | Path) -> Path:
    """`model.onnx` -> `model.onnx.data`, where weights lie that a file of 2 GB cannot hold."""
    model_path = Path(model_path)
    return model_path.with_name(model_path.name + ".data")


def sidecar_path(model_path: str | Path) -> Path:
    """`model.plan` -> `model.plan.json`."""
    model_path = Path(model_path)
    return model_path.with_name(model_path.name + ".json")


def _command(model_path: Path) -> str:
    """What makes a file whose sidecar, and with it the command that made it, is lost."""
    kind = "trt" if model_path.suffix == ".plan" else "onnx"
    return f"tfanet-export {kind} --checkpoint MODEL.safetensors --out {shlex.quote(str(model_path))}"


def _plain(value: Any) -> Any:
    """`value` as JSON would give it back, tuples as lists."""
    return json.loads(json.dumps(value))


def _problem(values: dict[str, Any]) -> str | None:
    """What is wrong with the fields of a sidecar, or None."""
    hints = typing.get_type_hints(Sidecar)
    missing, unknown = sorted(hints.keys() - values.keys()), sorted(values.keys() - hints.keys())
    if missing or unknown:
        return f"missing fields {missing}, unknown fields {unknown}"
    wrong = [name for name, hint in hints.items() if not _fits(values[name], hint)]
    if not wrong and (batch := values["batch"]) is not None:
        wrong = [] if len(batch) == 3 and 1 <= batch[0] <= batch[1] <= batch[2] else ["batch"]
    if not wrong and (wanted := values["compute_capabilities"]) is not None:
        well_formed = wanted and all(re.fullmatch(r"\d+\.\d\+?", entry) for entry in wanted)
        wrong = [] if well_formed else ["compute_capabilities"]
    return f"wrong values in {wrong}" if wrong else None


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is types.UnionType:
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is list:
        (item,) = typing.get_args(hint)
        return type(value) is list and all(_fits(part, item) for part in value)
    return type(value) is (origin or hint)
