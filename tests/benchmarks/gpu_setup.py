"""A small scan, our operations as kernels on the CPU, and a timer that needs no GPU."""

from __future__ import annotations

from kernel_choice import Kernels
from options import Shape
from timing import wall_timer

import tfanet.ops as ops
from tfanet.ops.selective_scan import selective_scan_backward

KERNELS = Kernels(
    ops.selective_scan, selective_scan_backward, ops.cross_selective_scan, ops.linear_cross_attention
)
SMALL = Shape(12, 3, states=2)
host_timer = wall_timer(3, 1.0)
