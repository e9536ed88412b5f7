"""The baseline's parts, in place of TFANet's three modules: the paper's Table 3, section 4.4.

Section 4.4 multiplies F_V and the word features element-wise, concatenates the product with F_V and the
sentence feature F_T, reduces that to C channels by a convolution, and ends in a "lightweight" decoder.

Readings where the paper leaves room:
- The product of L words and H W pixels: the words are projected to C channels and averaged first.
- The encoder is the full model's: fused features are fed to the next stage (3).
- The convolution only adjusts channels: 1x1.
- The decoder is WFDM from coarse to fine without words, gates and one of its convolutions; its width is the
  one that meets Table 4 (a).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tfanet.config import TFANetConfig
from tfanet.layers import masked_mean, resize
from tfanet.mlam import Fusion
from tfanet.text import TextFeatures
from tfanet.wfdm import conv_bn_relu, foreground_score


class WordProduct(nn.Module):
    """Alignment `none`: one product of words and pixels, F_c = mean(F_W) * F_V."""

    def __init__(self, visual_dim: int, text_dim: int, config: TFANetConfig) -> None:
        super().__init__()
        self.word = nn.Conv1d(text_dim, visual_dim, 1, bias=False)
        self.sentence = nn.Linear(text_dim, visual_dim)

    def forward(self, visual: Tensor, text: TextFeatures) -> Fusion:
        """F_V [B, C, H, W] and the text features -> the parts of the fusion block; words [B, C, L]."""
        words = self.word(text.words)
        return Fusion(
            text=self.sentence(text.sentence)[:, :, None, None].expand_as(visual),
            image=visual,
            local=masked_mean(words, text.valid)[:, :, None, None] * visual,
            words=words,
        )


class ConvFusion(nn.Module):
    """Fusion `conv`: F_Block [B, 3C, H, W] -> F_F [B, C, H, W] by a 1x1 convolution."""

    def __init__(self, dim: int, config: TFANetConfig) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3 * dim, dim, 1)

    def forward(self, fusion: Fusion) -> Tensor:
        return self.mix(fusion.block)


class ConvDecoder(nn.Module):
    """Decoder `conv`: fused features of four stages -> mask logits [B, S, S], from coarse to fine."""

    def __init__(self, config: TFANetConfig) -> None:
        super().__init__()
        dim = config.conv_decoder_dim
        self.lateral = nn.ModuleList(conv_bn_relu(c, dim, 1) for c in config.vmamba_dims)
        self.merge = nn.ModuleList(conv_bn_relu(dim, dim, 3) for _ in config.vmamba_dims[1:])
        self.refine = conv_bn_relu(dim, dim, 3)
        self.score = nn.Conv2d(dim, 2, 1)

    def forward(self, fused: Sequence[Tensor], words: Sequence[Tensor], valid: Tensor) -> Tensor:
        """F_F_i [B, C_i, H_i, W_i], i = 1..4 -> float32 [B, S, S]; `words` and `valid` are unused."""
        levels = [lateral(feature) for lateral, feature in zip(self.lateral, fused, strict=True)]
        x = levels.pop()
        for merge, finer in zip(self.merge, reversed(levels), strict=True):
            x = merge(resize(x, (finer.shape[2], finer.shape[3])) + finer)
        height, width = x.shape[2:]
        x = self.refine(resize(x, (2 * height, 2 * width)))
        return resize(foreground_score(self.score(x)), (4 * height, 4 * width)).squeeze(1)
