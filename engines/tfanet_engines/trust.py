"""The list of plans that this user built on this machine. A plan is code: others need `trust=True`.

TensorRT deserialises a plan into GPU kernels and structures that it does not validate as untrusted input; a
version-compatible plan even contains machine code for the CPU. A sidecar does not tell who wrote it. So
`build_plan` records the SHA-256 of each plan in a file that only this user may write.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tfanet.errors import UserError
from tfanet.files import atomic_path
from tfanet_engines.permissions import private_folder, require_own

if TYPE_CHECKING:
    from tfanet_engines.sidecar import Sidecar

LOCK_SECONDS = 30


def ledger_path() -> Path:
    """The file in the user's data folder, one SHA-256 per line."""
    from platformdirs import user_data_path

    return user_data_path("tfanet", appauthor=False) / "built-plans.sha256"


def require_usable() -> None:
    """Raise `UserError` before a build if `remember` would fail after it."""
    private_folder(ledger_path().parent)
    _known(ledger_path())


def remember(digest: str) -> None:
    """Record the SHA-256, in hex, of a plan that this user built.

    Safe for concurrent processes. Raises `UserError` if the file cannot be written or others may write it.
    """
    from filelock import FileLock, Timeout

    path = ledger_path()
    private_folder(path.parent)
    try:
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS, mode=0o600):
            known = _known(path)
            if digest in known:
                return
            with atomic_path(path, mode=0o600) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in [*known, digest]), encoding="ascii")
    except Timeout as error:
        raise UserError(f"{path} is locked by another process; try again when it has ended") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def built_here(digest: str) -> bool:
    """Whether this user built the plan with this SHA-256; `UserError` if others may write the list."""
    return digest in _known(ledger_path())


def require(file: Path, sidecar: Sidecar) -> None:
    """Raise `UserError` unless this user built the plan `file`. Check the sidecar's hash first."""
    if not built_here(sidecar.file_sha256):
        raise UserError(
            f"{file} was not built by you on this machine, and a plan is code: {sidecar.remedy}; or, if you "
            "trust its source, open it with --trust (in Python trust=True)"
        )


def _known(path: Path) -> list[str]:
    if not path.exists() and not path.is_symlink():
        return []
    require_own(path)
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); remove it and build the plans again") from error
    if bad := [line for line in lines if not re.fullmatch(r"[0-9a-f]{64}", line)]:
        raise UserError(
            f"{path} is not a list of SHA-256 ({bad[0][:20]!r} in it); remove it and build the plans again"
        )
    return lines
