"""Where the time of an evaluation goes: the engine, the data, the metrics."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Seconds; CPU seconds are those of all threads together and hardly depend on other users."""

    wall: float = 0.0
    engine_wall: float = 0.0
    """While an engine ran (the reference is one, too)."""
    cpu: float = 0.0
    """Of the whole process."""
    data_cpu: float = 0.0
    """Tokens of the sentences; decoding and resizing pictures, drawing the truths."""
    metrics_cpu: float = 0.0
    """Resizing logits, counting pixels, comparing logits."""
    samples: int = 0
    """Those that were measured, not those that a resumed run found done."""
    processes: int = 1
    """That ran at once; `wall` is theirs together, all other seconds are sums over them."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            wall=self.wall + other.wall,
            engine_wall=self.engine_wall + other.engine_wall,
            cpu=self.cpu + other.cpu,
            data_cpu=self.data_cpu + other.data_cpu,
            metrics_cpu=self.metrics_cpu + other.metrics_cpu,
            samples=self.samples + other.samples,
            processes=max(self.processes, other.processes),
        )

    def beside(self, other: Cost) -> Cost:
        """The cost of two processes that ran at once."""
        both, processes = self + other, self.processes + other.processes
        return dataclasses.replace(both, wall=max(self.wall, other.wall), processes=processes)

    @property
    def shares(self) -> tuple[float, float, float]:
        """Engine, data and metrics as shares of the CPU time, 0..1."""
        data, metrics = self.data_cpu / self.cpu, self.metrics_cpu / self.cpu
        return max(0.0, 1 - data - metrics), data, metrics

    def line(self) -> str:
        """One sentence; what is neither data nor metrics counts for the engine."""
        if not self.samples or not self.cpu or not self.wall:
            return "nothing was measured: every expression was in the results file"
        engine, data, metrics = (f"{100 * share:.1f} %" for share in self.shares)
        busy = self.engine_wall / (self.wall * self.processes)
        at_once = f", in {self.processes} processes" if self.processes > 1 else ""
        return (
            f"engine {engine} of the CPU time, data {data}, metrics {metrics}; an engine ran "
            f"{100 * busy:.1f} % of {self.wall:.1f} s{at_once}; per expression data "
            f"{1e3 * self.data_cpu / self.samples:.2f} ms, metrics "
            f"{1e3 * self.metrics_cpu / self.samples:.2f} ms of one core"
        )
