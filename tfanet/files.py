"""Atomic writes, checks of paths, and hashes of files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfanet.errors import UserError


@contextmanager
def atomic_path(final: str | Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path in the folder of `final`; on success flush it to disk and rename it to `final`.

    `mode` are the file permissions. On any error, including Ctrl-C, the temporary file is removed and `final`
    stays as it was. Raises `UserError` if the folder cannot be created or written.
    """
    final = Path(final)
    require_writable(final)
    handle, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.stem}-", suffix=final.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(final)
    except OSError as error:
        raise UserError(f"cannot write {final}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(final: str | Path) -> Iterator[Path]:
    """Yield a temporary folder next to `final`; on success flush its files and rename it to `final`.

    On any error, including Ctrl-C, it is removed with its content and `final` stays as it was. Raises
    `UserError` if `final` is a file or a folder that is not empty, or cannot be created.
    """
    final = Path(final)
    try:
        if final.is_dir() and any(final.iterdir()):
            raise UserError(f"{final} is not empty; give a new folder")
        if final.exists() and not final.is_dir():
            raise UserError(f"{final} is a file; give a new folder")
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}-"))
    except OSError as error:
        raise UserError(f"cannot write {final}: {error.strerror or error}") from error
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        temporary.chmod(0o755)
        if final.is_dir():
            final.rmdir()  # Windows cannot rename to an existing folder, even an empty one
        temporary.replace(final)
    except OSError as error:
        raise UserError(f"cannot write {final}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_writable(final: str | Path) -> None:
    """Raise `UserError`, before the work starts, if `final` cannot be written."""
    final = Path(final)
    try:
        if final.is_dir():
            raise UserError(f"{final} is a folder; give the name of a file")
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=final.parent, prefix=f".{final.stem}-", suffix=final.suffix):
            return
    except OSError as error:
        raise UserError(f"cannot write {final}: {error.strerror or error}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def require_file(path: str | Path, what: str) -> Path:
    """`path` as a `Path`. Raises `UserError` if it is not a readable, non-empty file; `what` names it."""
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{what} {path} is a folder, not a file")
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{what} {path} is empty")
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} does not exist") from error
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror or error}") from error
    return path


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
