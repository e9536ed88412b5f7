"""Owner and permissions of files that decide which code is run: only this user may write them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tfanet.errors import UserError

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def require_own(path: Path) -> None:
    """Raise `UserError` unless `path` is a regular file of this user that nobody else may write.

    Systems without POSIX owners only get the check for a regular file.
    """
    try:
        status = path.lstat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file; remove it")
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & WRITABLE_BY_OTHERS):
        raise UserError(f"{path} belongs to another user or is writable by others; remove it")


def private_folder(path: Path) -> None:
    """Create the folder `path` with mode 0700; `UserError` if that fails."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
