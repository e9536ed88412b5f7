"""Model checkpoints: one .safetensors file with the config as JSON in its metadata, loaded strictly."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tfanet.config import FORMAT, TFANetConfig
from tfanet.errors import UserError
from tfanet.files import atomic_path, require_file
from tfanet.model import TFANet


def save_model(
    model: TFANet,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    notes: dict[str, str] | None = None,
) -> None:
    """Write the weights and config of `model` to `path`, atomically.

    `dtype` is the stored floating-point dtype: float16 halves the file; `load_model` returns FP32 again.
    `notes` are extra strings for the file's metadata.
    """
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous().cpu()
        for name, tensor in model.state_dict().items()
    }
    metadata = (notes or {}) | {"format": FORMAT, "config": model.config.to_json()}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}") from error


def load_model(path: str | Path, *, image_size: int | None = None) -> TFANet:
    """The model of a checkpoint, FP32, on the CPU, in evaluation mode.

    `image_size` replaces the size in its config: no weight depends on it, but accuracy is best at the size of
    training.

    Raises `UserError` if the file is missing, truncated or not a TFANet checkpoint, or does not contain
    exactly the tensors of its config.
    """
    path = require_file(path, "checkpoint")
    config, tensors = _read(path)
    if image_size is not None:
        config = dataclasses.replace(config, image_size=image_size)
    with torch.device("meta"):  # shapes first: an invalid config must not allocate memory
        expected = TFANet(config).state_dict()
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise UserError(
            f"checkpoint {path} does not fit its config: missing {missing[:3]}, unknown {unknown[:3]}"
        )
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            raise UserError(
                f"checkpoint {path}: {name} is {tensor.dtype} {[*tensor.shape]}, its config needs "
                f"{expected[name].dtype} {[*expected[name].shape]}"
            )
    model = TFANet(config)
    model.load_state_dict(tensors)
    return model.eval()


def load_config(path: str | Path) -> TFANetConfig:
    """The config of a checkpoint, without its weights. Raises as `load_model`."""
    path = require_file(path, "checkpoint")
    return _config(path, _metadata(path))


def weights_sha256(model: TFANet) -> str:
    """Hex SHA-256 of all weights as FP32, by sorted name: identifies a model across file formats."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        values = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} is truncated or not a .safetensors file ({error})") from error
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from error


def _config(path: Path, metadata: dict[str, str]) -> TFANetConfig:
    if not metadata.get("format", "").startswith("tfanet-") or "config" not in metadata:
        raise UserError(
            f"{path} is a .safetensors file, but not a TFANet checkpoint (no tfanet config in it)"
        )
    return TFANetConfig.from_json(metadata["config"])


def _read(path: Path) -> tuple[TFANetConfig, dict[str, torch.Tensor]]:
    config = _config(path, _metadata(path))
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return config, {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
