"""Timers of the benchmarks, with fake CUDA events."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import timing
import torch
from timing import Timing

CPU = torch.device("cpu")


class FakeCuda:
    """Fake events of a device on which every recorded call takes 2 ms."""

    def __init__(self, monkeypatch):
        self.log = []
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(timing, "FLUSHED_BYTES", 64)
        monkeypatch.setattr(timing, "WARMUP_SECONDS", 0.0)

    def event(self, enable_timing):
        assert enable_timing
        record = SimpleNamespace(record=lambda: self.log.append("event"))
        record.elapsed_time = lambda other: 2.0
        return record


def test_events_enclose_the_call_and_flushes_precede_it(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    timer = timing.EventTimer(CPU, 7, 10.0)
    flush = timer._flush
    monkeypatch.setattr(timer, "_flush", lambda: cuda.log.append("flush") or flush())
    cuda.log.clear()
    measured = timer(lambda: cuda.log.append("call"))
    warm = timing.WARMUP_CALLS
    assert cuda.log == ["call"] * warm + ["flush", "event", "call", "event"] * 7
    assert measured.seconds == pytest.approx([0.002] * 7)
    assert not measured.host_bound


def test_launch_longer_than_all_flushes_is_host_bound(monkeypatch):
    FakeCuda(monkeypatch)
    monkeypatch.setattr(timing, "HOST_LIKE", 0.01)
    timer = timing.EventTimer(CPU, 5, 10.0)
    assert not timer(lambda: time.sleep(0.02)).host_bound  # the device takes 2 ms, more than 0.01 * 20 ms
    monkeypatch.setattr(timing, "HOST_LIKE", 1.5)
    measured = timer(lambda: time.sleep(0.02))
    assert measured.host_bound
    assert 0.02 <= measured.host_seconds < 0.5


def test_flush_writes_and_reads_the_whole_buffer(monkeypatch):
    FakeCuda(monkeypatch)
    timer = timing.EventTimer(CPU, 5, 10.0)
    timer._buffer.fill_(3.0)
    assert timer._flush() == 0
    assert timer._buffer.nbytes == 64
    assert not timer._buffer.any()


@pytest.mark.parametrize(
    ("host", "flush", "expected"),
    [
        pytest.param(0.0, 1e-4, 1, id="no-launch"),
        pytest.param(4e-5, 1e-4, 1, id="short"),
        pytest.param(1.2e-4, 1e-4, 3, id="longer-than-a-flush"),
        pytest.param(8e-4, 1e-4, 16, id="most-flushes"),
        pytest.param(1e-2, 1e-4, 1, id="too-many-flushes"),
        pytest.param(1e-2, 0.0, 1, id="flush-not-timed-yet"),
    ],
)
def test_flushes_keep_the_device_busy_while_the_host_launches(host, flush, expected):
    assert timing.flush_count(host, flush) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.01, 50), (1.0, 20), (100.0, timing.FEWEST_RUNS), (0.0, 50)],
    ids=["all", "as-the-limit-allows", "fewest", "no-time"],
)
def test_runs_fit_into_the_time_limit(seconds, expected):
    assert timing.run_count(seconds, 50, 20.0) == expected


def test_copy_bandwidth_counts_bytes_read_and_written():
    copied = []

    def timer(call):
        copied.append(call())
        return Timing([0.5, 0.25, 1.0])

    assert timing.copy_bandwidth(CPU, timer, 4000) == 2 * 4000 / 0.5
    assert torch.equal(copied[0], torch.ones(1000))


def test_wall_timer_warms_up_and_keeps_to_its_repeats():
    calls = []
    assert len(timing.wall_timer(20, 10.0)(lambda: calls.append(0)).seconds) == 20
    assert len(calls) == 20 + timing.WARMUP_CALLS
    assert len(timing.wall_timer(20, 0.05)(lambda: time.sleep(0.02)).seconds) == timing.FEWEST_RUNS


def test_first_run_in_turns_is_not_counted():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = timing.in_turns(calls, 2)
    assert order == ["a", "b"] * 3
    assert {name: len(runs) for name, runs in seconds.items()} == {"a": 2, "b": 2}
