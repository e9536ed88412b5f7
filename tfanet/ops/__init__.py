"""The operations that no runtime has, each in one file: equation, reference loop, fast path, gradient."""

from tfanet.ops.cross_selective_scan import cross_selective_scan
from tfanet.ops.dispatch import use_scan_kernel
from tfanet.ops.linear_cross_attention import linear_cross_attention
from tfanet.ops.selective_scan import selective_scan

__all__ = ["cross_selective_scan", "linear_cross_attention", "selective_scan", "use_scan_kernel"]
