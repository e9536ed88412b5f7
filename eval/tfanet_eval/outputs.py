"""Names and writing of the pictures that commands make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tfanet.errors import UserError
from tfanet.files import atomic_path, require_writable

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg")


def require_picture(path: Path) -> None:
    """Raise `UserError` unless a picture can be written to `path`: its suffix and its folder."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is not the name of a picture; it must end in {', '.join(SUFFIXES)}")
    require_writable(path)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write `picture` to `path` in the format of its suffix, atomically."""
    with atomic_path(path) as temporary:
        picture.save(temporary, quality=95)
