"""The two operations that no runtime knows, each in one file: equation, oracle, fast path, gradient."""

from tfanet.ops.linear_cross_attention import linear_cross_attention
from tfanet.ops.selective_scan import selective_scan

__all__ = ["linear_cross_attention", "selective_scan"]
