"""The model as it is deployed: the same function, prepared for tracing, in FP32 or FP16 with FP32 islands."""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tfanet.blocks import blocks_of, require_blocks
from tfanet.model import TFANet
from tfanet_export.precision import cast_at_borders

FP32_NAMES = frozenset({"A_logs", "Ds", "dt_projs_bias", "out_norm", "image_mean", "image_std"})
"""Modules and parameters that stay FP32 in the FP16 model: the scan's decay, skip and step, the normalisation
that takes the scan's FP32 output back into FP16's range, and the image's."""


def deployment_model(model: TFANet, *, fp16: bool, keep_fp32: Collection[str] = ()) -> TFANet:
    """A copy of `model` in evaluation mode with its BatchNorms folded into the convolutions before them.

    With `fp16` weights and activations are half precision, except `FP32_NAMES` and what the operations and
    the model compute in FP32 by themselves: scan, X-Norm, input normalisation, final logits. The blocks
    `keep_fp32` (`tfanet.blocks`) stay FP32 as a whole. `UserError` when the model has no such block.
    """
    require_blocks(model, keep_fp32)
    deployed = copy.deepcopy(model).cpu().eval()
    for module in deployed.modules():
        if isinstance(module, nn.Sequential):
            _fold_batch_norms(module)
    if fp16:
        named = dict([*deployed.named_parameters(), *deployed.named_buffers()])
        blocks = blocks_of(deployed)
        inside = {id(t) for n in keep_fp32 for t in (*blocks[n].parameters(), *blocks[n].buffers())}
        kept = {
            name: tensor.detach().clone()
            for name, tensor in named.items()
            if id(tensor) in inside or FP32_NAMES.intersection(name.split("."))
        }
        deployed.half()
        for name, tensor in [*deployed.named_parameters(), *deployed.named_buffers()]:
            if name in kept:
                tensor.data = kept[name]
        if keep_fp32:
            cast_at_borders(deployed, keep_fp32)
    return deployed.requires_grad_(False)


def _fold_batch_norms(block: nn.Sequential) -> None:
    for i in range(len(block) - 1):
        conv, norm = block[i], block[i + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            block[i], block[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
