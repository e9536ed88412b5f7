"""Download wheels that only tests need into the tests' cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

SECONDS_TO_DOWNLOAD = 180


class Unavailable(Exception):
    """A package cannot be downloaded here; the message is the reason."""


def fetch(folder: Path, packages: Sequence[str]) -> Path:
    """Unpack wheels (`name==version`, without dependencies) into `folder`, unless it exists; returns it.

    Processes that share the folder take turns. Raises `Unavailable` when pip fails or takes longer than
    `SECONDS_TO_DOWNLOAD`.
    """
    try:
        with FileLock(folder.with_name(f"{folder.name}.lock"), timeout=2 * SECONDS_TO_DOWNLOAD):
            if not folder.exists():
                _download(folder, packages)
    except Timeout as error:
        raise Unavailable(f"another process downloads {folder.name}") from error
    return folder


def _download(folder: Path, packages: Sequence[str]) -> None:
    work = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", "0", "--timeout", "5", "--no-deps", "--no-compile", "--only-binary", ":all:"]
    command += ["--target", str(work), *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_DOWNLOAD)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"pip did not get the wheels in {SECONDS_TO_DOWNLOAD} s") from error
    if done.returncode:
        raise Unavailable(f"pip has no wheels here: {(done.stderr.strip() or done.stdout).splitlines()[-1]}")
    work.rename(folder)
