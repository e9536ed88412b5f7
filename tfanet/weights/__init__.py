"""The checkpoint that ships with the package: `tiny`, trained on the synthetic data."""

from __future__ import annotations

from pathlib import Path

from tfanet.errors import UserError


def bundled(name: str = "tiny") -> Path:
    """Path of a bundled checkpoint; `UserError` when there is none of this name."""
    path = Path(__file__).parent / f"{name}.safetensors"
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.safetensors"))
        raise UserError(f"no checkpoint {name!r} ships with tfanet; bundled: {', '.join(known) or 'none'}")
    return path
