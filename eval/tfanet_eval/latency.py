"""How long an engine takes for one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image of timed calls of `Engine.infer`: host arrays in, host arrays out."""

    milliseconds: tuple[float, ...]
    """One number a call: its duration by its batch."""
    batch: int = 1
    """Images a call."""

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
