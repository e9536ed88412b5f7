"""The model for deployment: prepared for tracing, in FP32, or in FP16 with FP32 islands."""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tfanet.blocks import blocks_of, require_blocks
from tfanet.fp16 import half_
from tfanet.model import TFANet


def deployment_model(model: TFANet, *, fp16: bool, keep_fp32: Collection[str] = ()) -> TFANet:
    """A copy of `model` in evaluation mode, each BatchNorm folded into the convolution before it.

    With `fp16` its weights and activations are FP16, except the FP32 islands that `tfanet.fp16` lists and the
    blocks `keep_fp32` (`tfanet.blocks`). Raises `UserError` when the model has no such block.
    """
    require_blocks(model, keep_fp32)
    deployed = copy.deepcopy(model).cpu().eval()
    for module in deployed.modules():
        if isinstance(module, nn.Sequential):
            _fold_batch_norms(module)
    if fp16:
        half_(deployed, blocks_of(deployed), keep_fp32)
    return deployed.requires_grad_(False)


def _fold_batch_norms(block: nn.Sequential) -> None:
    for i in range(len(block) - 1):
        conv, norm = block[i], block[i + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            block[i], block[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
