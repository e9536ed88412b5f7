"""The GPU kernel of `scaled_square`; parameters in a plugin's order: inputs, scalars, outputs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scaled_square_kernel(p_x, p_scale, count, p_y, BLOCK: tl.constexpr):
    o_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    m_x = o_x < count
    b_x = tl.load(p_x + o_x, mask=m_x).to(tl.float32)
    b_scale = tl.load(p_scale).to(tl.float32)
    tl.store(p_y + o_x, b_scale * b_x * b_x, mask=m_x)
