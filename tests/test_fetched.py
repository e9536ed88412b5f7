"""Downloads into the tests' cache, with a fake pip."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fetched
import pytest


def test_workers_that_share_a_folder_download_once(tmp_path, monkeypatch):
    commands = []

    def install(command, **options):
        commands.append(command)
        time.sleep(0.1)
        Path(command[command.index("--target") + 1]).mkdir()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", install)
    folder = tmp_path / "package==1"
    with ThreadPoolExecutor(4) as threads:
        assert {*threads.map(lambda _: fetched.fetch(folder, ["package==1"]), range(4))} == {folder}
    assert folder.is_dir()
    assert len(commands) == 1


def test_a_failed_download_leaves_no_folder(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no network")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: failed)
    with pytest.raises(fetched.Unavailable, match="no network"):
        fetched.fetch(tmp_path / "package==1", ["package==1"])
    assert not (tmp_path / "package==1").exists()
