"""Timing of an evaluation: latency of the engine; wall and CPU time of engine, data and metrics."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image of timed calls of `Engine.infer`: host arrays in, host arrays out."""

    milliseconds: tuple[float, ...]
    """One value per call: its duration divided by its batch size."""
    batch: int = 1
    """Images per call."""

    @property
    def median(self) -> float:
        return float(np.median(self.milliseconds))

    @property
    def p95(self) -> float:
        return float(np.percentile(self.milliseconds, 95))

    def to_dict(self) -> dict[str, Any]:
        return {
            "median_ms": self.median,
            "p95_ms": self.p95,
            "calls": len(self.milliseconds),
            "batch": self.batch,
        }


@dataclass(frozen=True)
class Timing:
    """Seconds; CPU seconds are summed over threads, so they hardly depend on other load on the machine."""

    wall: float = 0.0
    engine_wall: float = 0.0
    """While the engine or the reference ran."""
    cpu: float = 0.0
    """Of the whole process."""
    data_cpu: float = 0.0
    """Tokenizing expressions; decoding and resizing images; drawing target masks."""
    metrics_cpu: float = 0.0
    """Resizing logits, counting pixels, comparing logits with the reference's."""
    samples: int = 0
    """Samples measured; those that a resumed run found in its results file do not count."""
    processes: int = 1
    """Processes that ran at once; `wall` is their common wall time, all other seconds are sums over them."""

    def __add__(self, other: Timing) -> Timing:
        """The timing of two evaluations that ran one after the other."""
        sums = map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        return dataclasses.replace(Timing(*sums), processes=max(self.processes, other.processes))

    def merge(self, other: Timing) -> Timing:
        """The timing of two processes that ran at once."""
        total, processes = self + other, self.processes + other.processes
        return dataclasses.replace(total, wall=max(self.wall, other.wall), processes=processes)

    def summary(self) -> str:
        """One line; CPU time that is neither data nor metrics counts for the engine."""
        if not self.samples or not self.cpu or not self.wall:
            return "nothing was measured: every expression was in the results file"
        data, metrics = self.data_cpu / self.cpu, self.metrics_cpu / self.cpu
        engine = max(0.0, 1 - data - metrics)
        busy = self.engine_wall / (self.wall * self.processes)
        at_once = f", in {self.processes} processes" if self.processes > 1 else ""
        return (
            f"engine {100 * engine:.1f} % of the CPU time, data {100 * data:.1f} %, metrics "
            f"{100 * metrics:.1f} %; an engine ran {100 * busy:.1f} % of {self.wall:.1f} s{at_once}; "
            f"per expression data {1e3 * self.data_cpu / self.samples:.2f} ms, metrics "
            f"{1e3 * self.metrics_cpu / self.samples:.2f} ms of one core"
        )
