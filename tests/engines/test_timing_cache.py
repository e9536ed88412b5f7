"""The times of kernels on disk, with a library that is played: its cache is a set of letters."""

from __future__ import annotations

from tfanet_engines import timing_cache


class Letters:
    def __init__(self, kept):
        self.kept = set(kept.decode())

    def serialize(self):
        return "".join(sorted(self.kept)).encode()

    def combine(self, other, ignore_mismatch):
        self.kept |= other.kept


class Config:
    """`measured` are the times that a build adds."""

    def __init__(self, measured, accepts=True):
        self.measured, self.accepts, self.cache = measured, accepts, None

    def create_timing_cache(self, kept):
        return Letters(kept)

    def set_timing_cache(self, cache, ignore_mismatch):
        if not self.accepts and cache.kept:
            return False
        self.cache = cache
        cache.kept |= set(self.measured)
        return True

    def get_timing_cache(self):
        return self.cache


def test_builds_at_the_same_time_join_what_they_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, other = Config("a"), Config("b")
    for config in (one, other):
        timing_cache.load(config, "11.4", "8.9")
    assert [timing_cache.save(config, "11.4", "8.9") for config in (one, other)] == ["", ""]
    third = Config("")
    timing_cache.load(third, "11.4", "8.9")
    assert third.cache.serialize() == b"ab"
    foreign = Config("", accepts=False)
    timing_cache.load(foreign, "11.4", "8.9")
    assert foreign.cache.serialize() == b""


def test_versions_and_gpus_have_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = {timing_cache.path_of(*of) for of in (("11.4", "8.9"), ("11.4", "12.0"), ("10.16", "8.9"))}
    assert len(paths) == 3
    assert {path.parents[2] for path in paths} == {tmp_path}


def test_a_folder_that_cannot_be_written_is_said_and_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "tfanet").write_text("a file in the folder's place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = Config("a")
    timing_cache.load(config, "11.4", "8.9")
    assert "times were not kept: cannot write" in timing_cache.save(config, "11.4", "8.9")
