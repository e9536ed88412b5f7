"""The normalisation of X-Norm, equation 9, and its gradient, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6
"""Keeps XNorm(0) = 0; far below the squared norm of any feature."""


def inverse_norm(x: Tensor, dim: int) -> Tensor:
    """1 / sqrt(|x|^2 + EPS) along `dim`, which is kept."""
    return torch.rsqrt((x * x).sum(dim, keepdim=True) + EPS)


def norm_gradient(g: Tensor, unit: Tensor, inverse: Tensor, dim: int) -> Tensor:
    """Gradient of x in unit = x * inverse, inverse = (|x|^2 + EPS)^(-1/2), given g = dL/dunit."""
    return (g - unit * (g * unit).sum(dim, keepdim=True)) * inverse
