"""The checkpoint in the package: `tiny`, trained on the synthetic data."""

from __future__ import annotations

from pathlib import Path

from tfanet.errors import UserError


def bundled(name: str = "tiny") -> Path:
    """Path of a bundled checkpoint. Raises `UserError` for an unknown name."""
    path = Path(__file__).parent / f"{name}.safetensors"
    if not path.is_file():
        names = sorted(file.stem for file in path.parent.glob("*.safetensors"))
        raise UserError(f"no bundled checkpoint {name!r}; bundled: {', '.join(names) or 'none'}")
    return path
