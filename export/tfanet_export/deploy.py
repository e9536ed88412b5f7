"""The model as it is deployed: the same function, prepared for tracing, in FP32 or FP16 with FP32 islands."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tfanet.model import TFANet

FP32_NAMES = frozenset({"A_logs", "Ds", "dt_projs_bias", "out_norm", "image_mean", "image_std"})
"""Modules and parameters that stay FP32 in the FP16 model: the scan's decay, skip and step, the normalisation
that takes the scan's FP32 output back into FP16's range, and the image's."""


def deployment_model(model: TFANet, *, fp16: bool) -> TFANet:
    """A copy of `model` in evaluation mode with its BatchNorms folded into the convolutions before them.

    With `fp16` weights and activations are half precision, except `FP32_NAMES` and what the operations and
    the model compute in FP32 by themselves: scan, X-Norm, input normalisation, final logits.
    """
    deployed = copy.deepcopy(model).cpu().eval()
    for module in deployed.modules():
        if isinstance(module, nn.Sequential):
            _fold_batch_norms(module)
    if fp16:
        kept = {name: tensor.clone() for name, tensor in _fp32_tensors(deployed)}
        deployed.half()
        for name, tensor in _fp32_tensors(deployed):
            tensor.data = kept[name]
    return deployed.requires_grad_(False)


def _fold_batch_norms(block: nn.Sequential) -> None:
    for i in range(len(block) - 1):
        conv, norm = block[i], block[i + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            block[i], block[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


def _fp32_tensors(model: TFANet) -> list[tuple[str, torch.Tensor]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in tensors if FP32_NAMES.intersection(name.split("."))]
