"""How calls are checked and timed on a GPU; the timer is handed in, so all else runs on a CPU too."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Result = Tensor | tuple[Tensor, ...]
Call = Callable[[], Result]

FLUSHED_BYTES = 256 << 20
"""Written and read between runs: several times the second-level cache of any GPU there is."""
COPIED_BYTES = 1 << 30
WARMUP_CALLS, WARMUP_SECONDS = 3, 0.05
FEWEST_RUNS, MOST_FLUSHES = 5, 16
HOST_MARGIN = 2.0
"""The GPU is kept busy this many times as long as the host needs to launch the next call."""
HOST_LIKE = 1.5
"""A call that takes the device this many times as long as the host to launch is the device's time."""


class NotHere(Exception):
    """A rival that this machine does not have; the message says why in a few words."""


@dataclass(frozen=True)
class Timing:
    """What a timer found for one call."""

    seconds: list[float]
    """On the device, of every run."""
    host_seconds: float = 0.0
    """That the host took to launch one call."""
    host_bound: bool = False
    """Whether the device may have waited for the host, so that `seconds` are the host's."""


Timer = Callable[[Call], Timing]


class EventTimer:
    """Times calls by CUDA events, each after the second-level cache was flushed.

    The flush writes a buffer and reads it again: what was read need not be written back while the call runs.
    It is repeated until it takes longer than the launch of the call, so that the device never waits for the
    host between the two events; a call that takes longer to launch than that is marked `host_bound`.
    `repeats` is the number of runs, fewer where they would take more than `limit` seconds.
    """

    def __init__(self, device: torch.device, repeats: int, limit: float) -> None:
        self._repeats, self._limit = repeats, limit
        self._buffer = torch.empty(FLUSHED_BYTES // 4, dtype=torch.float32, device=device)
        self._flush_seconds = 0.0
        self._flush_seconds = median(self(self._flush).seconds)

    def __call__(self, call: Call) -> Timing:
        host, whole = self._warm_up(call)
        flushes = flushes_before(host, self._flush_seconds)
        runs = run_count(whole + flushes * self._flush_seconds, self._repeats, self._limit)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
        for started, ended in events:
            for _ in range(flushes):
                self._flush()
            started.record()
            call()
            ended.record()
        torch.cuda.synchronize()
        seconds = [1e-3 * started.elapsed_time(ended) for started, ended in events]
        overtaken = host > flushes * self._flush_seconds and median(seconds) < HOST_LIKE * host
        return Timing(seconds, host, overtaken)

    def _flush(self) -> Tensor:
        self._buffer.zero_()
        return self._buffer.sum()

    def _warm_up(self, call: Call) -> tuple[float, float]:
        """Medians of the seconds until a call was launched, and until it was done, its first run left out."""
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


def flushes_before(host: float, flush: float) -> int:
    """How often to flush before a call that takes `host` seconds to launch; `flush` is what one takes.

    Once where no reasonable number of flushes would do.
    """
    needed = math.ceil(HOST_MARGIN * host / flush) if flush else 1
    return max(1, needed) if needed <= MOST_FLUSHES else 1


def run_count(seconds: float, repeats: int, limit: float) -> int:
    """`repeats`, or as many runs of `seconds` as fit into `limit`, but not fewer than `FEWEST_RUNS`."""
    return min(repeats, max(FEWEST_RUNS, int(limit / seconds))) if seconds else repeats


@dataclass(frozen=True)
class Candidate:
    """One way to compute a case's result."""

    name: str
    prepare: Callable[[], Call]
    """Makes the call that is timed; raises `NotHere`."""
    tolerance: float
    """Largest error, as a share of the largest value, of a result that may be timed."""
    ours: bool = False
    """What the others are compared with, and what may not fail."""


@dataclass(frozen=True)
class Case:
    """One problem, the result that all must give, and who is to compute it."""

    section: str
    size: str
    batch: int
    dtype: str
    inputs: tuple[Tensor, ...]
    reference: Call
    candidates: Sequence[Candidate]
    counted: bool = True
    """Whether bytes are counted: every input read once and every output written once."""


@dataclass(frozen=True)
class Row:
    """What was found for one candidate of one case."""

    section: str
    size: str
    batch: int
    dtype: str
    name: str
    ours: bool = False
    seconds: list[float] = field(default_factory=list)
    """Of every run; empty where `why` says why there are none."""
    host_seconds: float = 0.0
    host_bound: bool = False
    moved_bytes: int = 0
    error: float | None = None
    why: str = ""

    @property
    def case(self) -> tuple[str, str, int, str]:
        return self.section, self.size, self.batch, self.dtype

    @property
    def median(self) -> float:
        """Seconds; NaN where there are none."""
        return median(self.seconds) if self.seconds else math.nan


def measure(case: Case, timer: Timer) -> list[Row]:
    """Check every candidate against the reference and time those that are right; a row each."""
    with torch.no_grad():
        try:
            expected = case.reference()
        except failures() as error:
            why = f"nothing to check against: {first_line(error)}"
            return [row_of(case, candidate, why=why) for candidate in case.candidates]
        return [_measure_one(case, candidate, expected, timer) for candidate in case.candidates]


def _measure_one(case: Case, candidate: Candidate, expected: Result, timer: Timer) -> Row:
    try:
        call = candidate.prepare()
        poison(expected)
        found = call()
        error = relative_error(found, expected)
        if not error <= candidate.tolerance:
            return row_of(case, candidate, error=error, why=f"wrong by {error:.1e}, so not timed")
        moved = sum(t.nbytes for t in (*case.inputs, *tensors(found))) if case.counted else 0
        del found
        timing = timer(call)
    except NotHere as reason:
        return row_of(case, candidate, why=str(reason))
    except failures() as problem:
        return row_of(case, candidate, why=f"failed: {first_line(problem)}")
    return row_of(
        case, candidate, seconds=timing.seconds, host_seconds=timing.host_seconds,
        host_bound=timing.host_bound, moved_bytes=moved, error=error,
    )  # fmt: skip


def row_of(case: Case, candidate: Candidate, **found: Any) -> Row:
    return Row(case.section, case.size, case.batch, case.dtype, candidate.name, candidate.ours, **found)


def failures() -> tuple[type[Exception], ...]:
    """What a kernel may raise on a machine that it was not tried on; memory that runs out is among them."""
    kinds: tuple[type[Exception], ...] = (RuntimeError, ImportError, OSError, TypeError, ValueError)
    if find_spec("triton") is not None:
        kinds += (importlib.import_module("triton.errors").TritonError,)
    return kinds


def first_line(error: Exception) -> str:
    """The type and first line of an error's message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def tensors(result: Result) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def poison(like: Result) -> None:
    """Fill memory that the next call is likely to get with NaN, for an earlier right result may lie there."""
    filled = [torch.full_like(t, math.nan) for t in tensors(like)]
    del filled


def relative_error(found: Result, expected: Result) -> float:
    """Largest difference as a share of the largest expected value, of the worst tensor; NaN if any is."""
    worst = 0.0
    for ours, right in zip(tensors(found), tensors(expected), strict=True):
        if ours.shape != right.shape:
            raise ValueError(f"a result is {[*ours.shape]}, not {[*right.shape]}")
        error = ((ours.float() - right.float()).abs().max() / right.float().abs().max()).item()
        worst = error if math.isnan(error) else max(worst, error)
        if math.isnan(worst):
            return worst
    return worst


def copy_bandwidth(device: torch.device, timer: Timer, size: int = COPIED_BYTES) -> float:
    """Bytes a second, read and written both counted, of a copy of `size` bytes on the device."""
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median(timer(lambda: target.copy_(source)).seconds)


def within(seconds: float, function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in a fresh process that is killed after `seconds`.

    Raises `TimeoutError` then, and `EOFError` when the process ends without a result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise TimeoutError
        return receiver.recv()
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    sender.send(function(*args))


def about_gpu() -> dict[str, Any]:
    """The current CUDA device, driver and versions, for the head of a report."""
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "GPU": f"{device.name}, compute capability {device.major}.{device.minor}, "
        f"{device.multi_processor_count} multiprocessors, {device.total_memory / 2**30:.0f} GiB, "
        f"{device.L2_cache_size / 2**20:.0f} MiB of second-level cache",
        "driver": driver_version(),
        "CUDA of PyTorch": torch.version.cuda,
        "GPU packages": ", ".join(f"{name} {installed(name)}" for name in ("triton", "mamba_ssm")),
    }


def driver_version() -> str:
    """As nvidia-smi says; `unknown` where it does not."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said[0] if said else "unknown"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
