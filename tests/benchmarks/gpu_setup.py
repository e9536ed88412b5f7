"""What the tests of the GPU's benchmark share: the operations as kernels, and a timer that needs no GPU."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import tfanet.ops as ops

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
gpu_measure, gpu_cases, scan_measure = map(
    importlib.import_module, ("gpu_measure", "gpu_cases", "scan_measure")
)
scan_module = importlib.import_module("tfanet.ops.selective_scan")

KERNELS = gpu_cases.Kernels(
    ops.selective_scan,
    scan_module.selective_scan_backward,
    ops.cross_selective_scan,
    ops.linear_cross_attention,
)
SMALL = scan_measure.Shape(12, 3, states=2)


def host_timer(call):
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return gpu_measure.Timing(seconds)
