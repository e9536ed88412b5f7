"""Atomic folders: complete or absent."""

from __future__ import annotations

import pytest

from tfanet.errors import UserError
from tfanet.files import atomic_folder


@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty"])
def test_folder_is_renamed_when_complete(tmp_path, exists):
    final = tmp_path / "a" / "folder"
    if exists:
        final.mkdir(parents=True)
    with atomic_folder(final) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("content")
        assert not final.exists() or not any(final.iterdir())
    assert (final / "sub" / "file").read_text() == "content"
    assert final.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in final.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_incomplete_folder_is_removed(tmp_path, error):
    def write():
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "file").write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert not any(tmp_path.iterdir())


def test_existing_content_is_kept(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    for name, message in (
        ("full", "is not empty"),
        ("full/kept", "is a file"),
        ("full/kept/x", "cannot write"),
    ):
        with pytest.raises(UserError, match=message), atomic_folder(tmp_path / name):
            pytest.fail("the block was entered")
    assert (tmp_path / "full" / "kept").read_text() == "kept"


def test_folder_created_meanwhile_is_kept(tmp_path):
    def write():
        with atomic_folder(tmp_path / "folder"):
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder" / "other").write_text("other")

    with pytest.raises(UserError, match="cannot write"):
        write()
    assert (tmp_path / "folder" / "other").read_text() == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
