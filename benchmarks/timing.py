"""Timers: CUDA events with a cold cache, wall-clock time, and several calls in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tfanet.console import bar

FLUSHED_BYTES = 256 << 20
"""Written and read between runs to flush the second-level cache: several times the largest there is."""
COPIED_BYTES = 1 << 30
WARMUP_CALLS, WARMUP_SECONDS = 3, 0.05
FEWEST_RUNS, MOST_FLUSHES = 5, 16
HOST_MARGIN = 2.0
"""The GPU is kept busy this many times as long as the host needs to launch the next call."""
HOST_LIKE = 1.5
"""A call is not host-bound if the device takes this many times as long as the host needs to launch it."""


@dataclass(frozen=True)
class Timing:
    """Measurements of one call."""

    seconds: list[float]
    """Of every run."""
    host_seconds: float = 0.0
    """Seconds in which the host launches one call; 0 if not measured."""
    host_bound: bool = False
    """Whether the device may have waited for the host, so that `seconds` are the host's."""


Timer = Callable[[Callable[[], Any]], Timing]


class EventTimer:
    """Times calls with CUDA events, each after a flush of the second-level cache.

    A flush writes a buffer and reads it again, so that little remains to be written back while the call
    runs. Flushes are repeated until they take longer than the launch of the call, so that the device does
    not wait for the host between the two events; if the launch takes too long for that, the timing is marked
    `host_bound`. `repeats` is the number of runs, fewer if they would take more than `limit` seconds.
    """

    def __init__(self, device: torch.device, repeats: int, limit: float) -> None:
        self._repeats, self._limit = repeats, limit
        self._buffer = torch.empty(FLUSHED_BYTES // 4, dtype=torch.float32, device=device)
        self._flush_seconds = 0.0
        self._flush_seconds = median(self(self._flush).seconds)

    def __call__(self, call: Callable[[], Any]) -> Timing:
        host, total = self._warm_up(call)
        flushes = flush_count(host, self._flush_seconds)
        runs = run_count(total + flushes * self._flush_seconds, self._repeats, self._limit)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
        for started, ended in events:
            for _ in range(flushes):
                self._flush()
            started.record()
            call()
            ended.record()
        torch.cuda.synchronize()
        seconds = [1e-3 * started.elapsed_time(ended) for started, ended in events]
        host_bound = host > flushes * self._flush_seconds and median(seconds) < HOST_LIKE * host
        return Timing(seconds, host, host_bound)

    def _flush(self) -> Tensor:
        self._buffer.zero_()
        return self._buffer.sum()

    def _warm_up(self, call: Callable[[], Any]) -> tuple[float, float]:
        """Median seconds of the launch, and of launch and run together; the first call is left out."""
        launched: list[float] = []
        done: list[float] = []
        torch.cuda.synchronize()
        began = time.perf_counter()
        while len(done) < WARMUP_CALLS or time.perf_counter() - began < WARMUP_SECONDS:
            started = time.perf_counter()
            call()
            launched.append(time.perf_counter() - started)
            torch.cuda.synchronize()
            done.append(time.perf_counter() - started)
        return median(launched[1:]), median(done[1:])


def flush_count(host: float, flush: float) -> int:
    """Flushes before a call that takes `host` seconds to launch, if one flush takes `flush` seconds.

    Returns 1 if more than `MOST_FLUSHES` would be necessary.
    """
    needed = math.ceil(HOST_MARGIN * host / flush) if flush else 1
    return max(1, needed) if needed <= MOST_FLUSHES else 1


def run_count(seconds: float, repeats: int, limit: float) -> int:
    """`repeats`, or as many runs of `seconds` as fit into `limit`, but at least `FEWEST_RUNS`."""
    return min(repeats, max(FEWEST_RUNS, int(limit / seconds))) if seconds else repeats


def wall_timer(repeats: int, limit: float) -> Timer:
    """Wall-clock time of `repeats` calls after a warm-up, fewer if they would take more than `limit` s."""

    def timer(call: Callable[[], Any]) -> Timing:
        def once() -> float:
            started = time.perf_counter()
            call()
            return time.perf_counter() - started

        warm = min(once() for _ in range(WARMUP_CALLS))
        return Timing([once() for _ in range(run_count(warm, repeats, limit))])

    return timer


def in_turns(
    calls: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of `repeats` runs of every call, after a first run that is not counted.

    The calls take turns, so that other work on the machine affects all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with bar() as progress:
        task = progress.add_task("", total=(repeats + 1) * len(calls))
        for run in range(repeats + 1):
            for name, call in calls.items():
                progress.update(task, description=name)
                started = clock()
                call()
                if run:
                    seconds[name].append(clock() - started)
                progress.advance(task)
    return seconds


def copy_bandwidth(device: torch.device, timer: Timer, size: int = COPIED_BYTES) -> float:
    """Bytes per second of a copy of `size` bytes on the device; bytes read and written both count."""
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median(timer(lambda: target.copy_(source)).seconds)
