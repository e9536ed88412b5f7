"""The description of `model.onnx` or `model.plan`, in `model.onnx.json` or `model.plan.json` next to it.

Plans and ONNX files stay raw, so other tools can read them. The sidecar has the model's config, the proof of
its precision, hashes, and the command that rebuilds the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tfanet.config import TFANetConfig
from tfanet.errors import UserError
from tfanet.files import require_file, sha256, write_json
from tfanet.signature import signature_of
from tfanet.validation import from_json

FORMAT_VERSION = 4
MEAN_STD = "the graph subtracts ImageNet's mean and divides by its deviation"


@dataclass(frozen=True)
class Sidecar:
    """Everything about a model file except its weights. `Sidecar.of` derives some fields from the config."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    kind: Literal["onnx", "plan"]
    config: dict[str, Any]
    """`TFANetConfig.to_dict()`."""
    weights_sha256: str | None
    """Hash of the model's weights (`tfanet.checkpoint.weights_sha256`); None if unknown."""
    precision: Literal["fp32", "fp16"]
    proof: dict[str, Any]
    """Counts that prove the precision, e.g. `half_weight_share`, 0..1."""
    builder: str
    """The program that wrote the file: `torch.onnx`, `tensorrt_rtx` or `tensorrt`."""
    builder_version: str
    compute_capabilities: list[str] | None
    """Of the GPUs a plan is for (`tfanet_engines.targets.fits`); None for an ONNX file."""
    version_compatible: bool
    """Whether other versions of the builder's library can open the plan, too."""
    batch: list[int] | None
    """Smallest, optimal and largest batch of a plan; None for an ONNX file, which takes any."""
    onnx_sha256: str
    file_sha256: str
    rebuild: str
    """The command that builds the file again."""
    cost: dict[str, Any]
    """Resources and result of the build: `seconds`, `peak_memory_bytes`, `bytes`, `nodes` or `layers`."""
    parity: dict[str, Any] | None
    """`ParityMetrics.to_dict()` against PyTorch, if it was measured."""
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
        """A sidecar with the signature, tokenizer and preprocessing of `config`."""
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
        """Write the sidecar of `model_path` atomically; returns the sidecar's path."""
        path = sidecar_path(model_path)
        write_json(path, dataclasses.asdict(self))
        return path

    @classmethod
    def read(cls, model_path: str | Path) -> Sidecar:
        """The sidecar of `model_path`; `UserError` if it is missing, invalid or of another format version."""
        model_path = Path(model_path)
        path = sidecar_path(model_path)
        remedy = f"rebuild {model_path.name} with: {_command(model_path)}"
        if not path.exists():
            raise UserError(f"{path} is missing; copy it along with {model_path.name}, or {remedy}")
        require_file(path, "sidecar")
        try:
            text = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        what = f"sidecar {path}"
        version = from_json(dict[str, Any], text, what, remedy).get("format_version")
        if version is None:
            raise UserError(f"{path} is not a sidecar of tfanet; {remedy}")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{what} has format version {version}, this tfanet reads {FORMAT_VERSION}; install the "
                f"tfanet that wrote it, or {remedy}"
            )
        sidecar = from_json(cls, text, what, remedy)
        if field := sidecar._invalid_field():
            raise UserError(f"{what} is invalid: {field}: {getattr(sidecar, field)}; {remedy}")
        sidecar.model_config()
        return sidecar

    def _invalid_field(self) -> str | None:
        """The first field whose value is invalid although its type is right, or None."""
        batch, capabilities = self.batch, self.compute_capabilities
        if batch is not None and not (len(batch) == 3 and 1 <= batch[0] <= batch[1] <= batch[2]):
            return "batch"
        if capabilities is not None and not (
            capabilities and all(re.fullmatch(r"\d+\.\d\+?", entry) for entry in capabilities)
        ):
            return "compute_capabilities"
        return None

    def check_file(self, model_path: str | Path) -> None:
        """Raise `UserError` unless `model_path` has the hash in this sidecar."""
        path = require_file(model_path, self.kind)
        self.check_digest(path, model_sha256(path))

    def check_digest(self, path: Path, digest: str) -> None:
        """Raise `UserError` unless `digest`, the SHA-256 of `path`, is the hash in this sidecar."""
        if digest != self.file_sha256:
            raise UserError(f"{path} is truncated or altered, its sidecar has another hash; {self.remedy}")

    def model_config(self) -> TFANetConfig:
        """The model's config; `UserError` if this version of tfanet does not have its fields."""
        return TFANetConfig.from_dict(self.config)

    @property
    def remedy(self) -> str:
        """What to do if the file cannot be used."""
        return f"rebuild it with: {self.rebuild}"


def model_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a model file, including its external weights if there are any."""
    weights = external_data_path(path)
    digest = sha256(path)
    return hashlib.sha256(f"{digest} {sha256(weights)}".encode()).hexdigest() if weights.exists() else digest


def external_data_path(model_path: str | Path) -> Path:
    """`model.onnx` -> `model.onnx.data`: the weights of a model above the ONNX limit of 2 GB."""
    model_path = Path(model_path)
    return model_path.with_name(model_path.name + ".data")


def sidecar_path(model_path: str | Path) -> Path:
    """`model.plan` -> `model.plan.json`."""
    model_path = Path(model_path)
    return model_path.with_name(model_path.name + ".json")


def _command(model_path: Path) -> str:
    """A command that builds a file whose sidecar, with the original command, is lost."""
    kind = "trt" if model_path.suffix == ".plan" else "onnx"
    return f"tfanet-export {kind} --checkpoint MODEL.safetensors --out {shlex.quote(str(model_path))}"


def _plain(value: Any) -> Any:
    """`value` after a round trip through JSON: tuples become lists."""
    return json.loads(json.dumps(value))
