"""Files that decide what code is run: they must be the user's own, and nobody else may write them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tfanet.errors import UserError

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def require_own(path: Path) -> None:
    """`UserError` unless `path` is a file of this user that no other may write, and no link.

    Where the system has no owners as POSIX knows them only the kind of file is checked.
    """
    try:
        found = path.lstat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is no plain file; remove it")
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & WRITABLE_BY_OTHERS):
        raise UserError(f"{path} is another user's or writable by others, so it is not relied on; remove it")


def private_folder(path: Path) -> None:
    """Make the folder `path` for this user alone; `UserError` where that cannot be."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
