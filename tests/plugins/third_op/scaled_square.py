"""An operation that exists only in the tests, added in the same way as those of `tfanet.ops`.

    scaled_square(x, scale) -> y

| tensor  | shape        | meaning                         |
|---------|--------------|---------------------------------|
| `x`     | [batch, ...] | any shape                       |
| `scale` | [1]          | parameter                       |
| `y`     | as `x`       | scale x^2 in FP32, dtype of `x` |
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfanet.fp16 import accum_dtype


def scaled_square_loop(x: Tensor, scale: Tensor) -> Tensor:
    """The equation, element by element."""
    values = [scale.item() * value * value for value in x.flatten().tolist()]
    return torch.tensor(values).reshape(x.shape).to(x.dtype)


@torch.library.custom_op("tfanet::scaled_square", mutates_args=())
def scaled_square(x: Tensor, scale: Tensor) -> Tensor:
    dtype = accum_dtype(x)
    return (scale.to(dtype) * x.to(dtype) ** 2).to(x.dtype)


@scaled_square.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)
