"""The timing cache on disk, with a fake library whose caches are sets of letters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fakes.tensorrt import FakeTensorRT

from tfanet_engines import timing_cache


def config(timings, **options):
    """An `IBuilderConfig`; a build with it adds `timings`. Skips if TensorRT-RTX is not installed."""
    return FakeTensorRT(pytest.importorskip("tensorrt_rtx"), timings=timings, **options).config()


def test_concurrent_builds_combine_their_timings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configs = [config("a"), config("b")]
    for each in configs:
        timing_cache.load(each, "11.4", "8.9")
    assert [timing_cache.save(each, "11.4", "8.9") for each in configs] == ["", ""]
    third = config("")
    timing_cache.load(third, "11.4", "8.9")
    assert third.get_timing_cache().serialize() == b"ab"


def test_a_rejected_timing_cache_is_replaced_by_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, rejecting = config("ab"), config("", takes_timings=False)
    timing_cache.load(first, "11.4", "8.9")
    assert timing_cache.save(first, "11.4", "8.9") == ""
    timing_cache.load(rejecting, "11.4", "8.9")
    assert rejecting.get_timing_cache().serialize() == b""


def test_each_version_and_gpu_has_its_own_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keys = [("11.4", "8.9"), ("11.4", "12.0"), ("10.16", "8.9")]
    paths = {timing_cache.path_of(*key) for key in keys}
    assert len(paths) == 3
    assert {path.parents[2] for path in paths} == {tmp_path}


def test_a_folder_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    (tmp_path / "tfanet").write_text("a file in the folder's place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failing = SimpleNamespace(
        create_timing_cache=lambda blob: blob, set_timing_cache=lambda cache, ignore_mismatch: True,
        get_timing_cache=lambda: b"",
    )  # fmt: skip
    timing_cache.load(failing, "11.4", "8.9")
    assert "timings were not saved: cannot write" in timing_cache.save(failing, "11.4", "8.9")
