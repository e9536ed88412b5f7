"""The scans of mamba_ssm and VMamba, called like `tfanet.ops.selective_scan` and its gradients.

They are compared with ours; each function raises `NotAvailable` if its package is missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from report import NotAvailable
from torch import Tensor

from tfanet.ops import dispatch

Scan = Callable[..., Tensor]


def mamba_scan() -> Scan:
    """mamba_ssm's scan; its result has the dtype of `u`."""
    if find_spec("mamba_ssm") is None:
        raise NotAvailable("not installed")
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
    ) -> Tensor:
        return interface.selective_scan_fn(u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=True)

    return scan


def mamba_scan_fp32() -> Scan:
    """mamba_ssm's scan with FP32 inputs and result: a trained model's result exceeds the range of FP16."""
    scan = dispatch.mamba_scan()
    if scan is None:
        raise NotAvailable("not installed")
    return scan


def mamba_backward(dy: Tensor, inputs: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
    """A call of the backward pass alone, after one forward pass; `dy` is cast to the dtype of `u`."""
    scan, dy = mamba_scan(), dy.to(inputs[0].dtype)
    leaves = [t.detach().requires_grad_() for t in inputs]
    with torch.enable_grad():
        y = scan(*leaves)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def oflex_scan() -> Scan:
    """The scan of VMamba's extension with an FP32 result."""
    module = _oflex_module()
    return lambda *inputs: module.fwd(*inputs, True, 1, True)[0]


def oflex_backward(dy: Tensor, inputs: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
    """A call of its backward pass alone, after one forward pass."""
    module = _oflex_module()
    _, states, *_ = module.fwd(*inputs, True, 1, True)
    return lambda: tuple(module.bwd(*inputs, dy, states, True, 1)[:7])


def _oflex_module() -> Any:
    if find_spec("selective_scan_cuda_oflex") is None:
        raise NotAvailable("not built")
    return importlib.import_module("selective_scan_cuda_oflex")
