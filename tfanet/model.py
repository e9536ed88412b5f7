"""TFANet, Figure 2 of the paper: start here.

image ---> VMamba stage 1 ---> stage 2 ---> stage 3 ---> stage 4
              |        ^ sigma    |  ^         |  ^         |
text -----> CLIP -> KPS (MLAM, mlam.py) -> KFS (CFSM, cfsm.py)      at each of the four stages
              |                                    |
              +--------> KIS (WFDM, wfdm.py) <-----+ ----> mask logits

The ablation variants of Table 3 replace KPS, KFS and KIS (`ALIGNMENTS`, `FUSIONS`, `DECODERS`); the data flow
is the same.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from tfanet.baseline import ConvDecoder, ConvFusion, WordProduct
from tfanet.cfsm import CFSM
from tfanet.config import TFANetConfig, preset
from tfanet.fp16 import to_fp32
from tfanet.mlam import KnowledgePlus
from tfanet.text import TextEncoder
from tfanet.transformer import JointTransformer
from tfanet.vmamba import VMamba
from tfanet.wfdm import WFDM

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet's mean and deviation of RGB in 0..1, as VMamba was trained."""

ALIGNMENTS = {"none": WordProduct, "transformer": JointTransformer, "mlam": KnowledgePlus}
"""[B, C_i, H_i, W_i] and `TextFeatures` -> `Fusion`, by `TFANetConfig.alignment`."""
FUSIONS = {"conv": ConvFusion, "cfsm": CFSM}
"""`Fusion` -> F_i [B, C_i, H_i, W_i], by `TFANetConfig.fusion`."""
DECODERS = {"conv": ConvDecoder, "wfdm": WFDM}
"""F_i, word features and valid positions -> mask logits [B, S, S], by `TFANetConfig.decoder`."""


class TFANet(nn.Module):
    """Referring image segmentation: image and expression -> mask logits (`tfanet.signature`)."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: TFANetConfig) -> None:
        super().__init__()
        self.config = config
        self.vmamba = VMamba(config)
        self.text = TextEncoder(config.text_tower)
        align, fuse, decoder = ALIGNMENTS[config.alignment], FUSIONS[config.fusion], DECODERS[config.decoder]
        self.plus = nn.ModuleList(align(dim, self.text.width, config) for dim in config.vmamba_dims)
        self.fusion = nn.ModuleList(fuse(dim, config) for dim in config.vmamba_dims)
        self.decoder = decoder(config)
        for name, values in {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}.items():
            scaled = 255 * torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, scaled, persistent=False)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """image uint8 [B, S, S, 3], tokens int64 [B, L] -> mask logits float32 [B, S, S]."""
        text = self.text(tokens)
        x = self.vmamba.patch_embed(self.normalise(image))
        fused, words = [], []
        for stage, plus, fusion in zip(self.vmamba.stages, self.plus, self.fusion, strict=True):
            visual = stage.blocks(x)  # F_V_i [B, C_i, H_i, W_i], (1)
            parts = plus(visual, text)
            fused.append(fusion(parts))  # F_i = delta_i(F_V_i, F_W), (2)
            words.append(parts.words)
            x = stage.downsample(visual + fused[-1])  # sigma(F_V_i + F_i), the input of VSS_(i+1), (3)
        return self.decoder(fused, words, text.valid)

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> [B, 3, S, S] in the model's dtype, computed in FP32 (`tfanet.fp16`)."""
        x = (to_fp32(image).permute(0, 3, 1, 2) - to_fp32(self.image_mean)) / to_fp32(self.image_std)
        return x.to(cast(Tensor, self.vmamba.patch_embed[0].weight).dtype)


def build_model(name: str = "base", **overrides: Any) -> TFANet:
    """A TFANet of preset `name` with random weights; keywords replace fields of `TFANetConfig`."""
    return TFANet(preset(name, **overrides))
