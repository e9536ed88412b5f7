"""The operations that no runtime knows, each in one file: equation, oracle, fast path, gradient."""

from tfanet.ops.cross_selective_scan import cross_selective_scan
from tfanet.ops.linear_cross_attention import linear_cross_attention
from tfanet.ops.selective_scan import selective_scan

__all__ = ["cross_selective_scan", "linear_cross_attention", "selective_scan"]
