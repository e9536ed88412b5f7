"""Knowledge Plus Stage: Multiscale Linear Cross-Attention Module and the fusion block, equations 4 to 19.

Readings where the paper leaves room:
- F_VL is text-shaped, F_LV image-shaped, as in equations 8-10 and 14-19 (section 3.1 swaps the names).
- Equations 5, 6, 11: the visual 3x3 and 5x5 embeddings are depthwise followed by 1x1; full convolutions
  would have ten times MLAM's MACs in Table 4. The text's are full 1-D convolutions of 1, 3 and 5 words.
- Equation 9: gamma per head and scale; the norm runs over a head's channels.
- Equations 10, 15: w_i is learned, 1/3 at first.
- Equation 16 multiplies L x d by d x HW; the product is used as L channels of H x W.
- Equation 17: E(F_VL) is the mean over the words, repeated at every pixel.
- Equations 2 and 19: in the overview F_Block is [F_f, F_T, F_V], in equation 19 the enhanced features. Both
  hold if F_T is added to the enhanced text and F_V to the enhanced image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tfanet.config import TFANetConfig
from tfanet.layers import masked_mean
from tfanet.ops import linear_cross_attention
from tfanet.text import TextFeatures

KERNELS = (1, 3, 5)


def _visual_embedding(inputs: int, dim: int, kernel: int) -> nn.Module:
    pointwise = nn.Conv2d(inputs, dim, 1, bias=False)
    if kernel == 1:
        return pointwise
    depthwise = nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=False)
    return nn.Sequential(depthwise, pointwise)


def _visual_embeddings(inputs: int, dim: int) -> nn.ModuleList:
    return nn.ModuleList(_visual_embedding(inputs, dim, kernel) for kernel in KERNELS)


def _text_embeddings(inputs: int, dim: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Conv1d(inputs, dim, kernel, padding=kernel // 2, bias=False) for kernel in KERNELS
    )


class MLAM(nn.Module):
    """Bidirectional linear cross-attention between words and pixels at three scales, equations 4 to 15."""

    def __init__(self, visual_dim: int, text_dim: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.text_query = _text_embeddings(text_dim, dim)
        self.visual_key = _visual_embeddings(visual_dim, dim)
        self.visual_value = _visual_embeddings(visual_dim, dim)
        self.visual_query = _visual_embeddings(visual_dim, dim)
        self.text_key = _text_embeddings(text_dim, dim)
        self.text_value = _text_embeddings(text_dim, dim)
        scales = len(KERNELS)
        self.gamma_vl = nn.Parameter(torch.ones(scales, heads))
        self.gamma_lv = nn.Parameter(torch.ones(scales, heads))
        self.weight_vl = nn.Parameter(torch.full((scales,), 1 / scales))
        self.weight_lv = nn.Parameter(torch.full((scales,), 1 / scales))

    def no_weight_decay(self) -> set[str]:
        """The scales of X-Norm, one a head."""
        return {"gamma_vl", "gamma_lv"}

    def forward(self, visual: Tensor, words: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """F_V [B, C, H, W], F_W [B, W, L], valid [B, L] -> F_VL [B, d, L], F_LV [B, d, H, W].

        F_W must be zero where `valid` is not; F_VL is.
        """
        mask = valid[:, None].to(visual.dtype)
        to_text, to_image = [], []
        for i in range(len(KERNELS)):
            # A convolution writes into the padding next to the last word: mask its output as well.
            query = self.text_query[i](words) * mask  # (4)
            key, value = self.visual_key[i](visual), self.visual_value[i](visual)  # (5), (6)
            to_text.append(self.weight_vl[i] * self._attend(query, key, value, self.gamma_vl[i]))  # (8)

            query = self.visual_query[i](visual)  # (11)
            key, value = self.text_key[i](words) * mask, self.text_value[i](words) * mask  # (12), (13)
            to_image.append(self.weight_lv[i] * self._attend(query, key, value, self.gamma_lv[i]))  # (14)
        f_vl = to_text[0] + to_text[1] + to_text[2]  # (10)
        f_lv = to_image[0] + to_image[1] + to_image[2]  # (15)
        return f_vl, f_lv

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, gamma: Tensor) -> Tensor:
        q, k, v = (x.flatten(2).unflatten(1, (self.heads, -1)) for x in (query, key, value))
        return linear_cross_attention(q, k, v, gamma).flatten(1, 2).unflatten(-1, query.shape[2:])


class Fusion(NamedTuple):
    """The output of a stage's KPS, or of its variants (`tfanet.baseline`, `tfanet.transformer`)."""

    text: Tensor
    """F~_VL [B, C, H, W], equation 17."""
    image: Tensor
    """F~_LV [B, C, H, W], equation 18."""
    local: Tensor
    """F_c [B, C, H, W], from equation 16."""
    words: Tensor
    """F_VL [B, d, L], d of `TFANetConfig.word_dims`: the word features that the decoder uses too."""

    @property
    def block(self) -> Tensor:
        """F_Block = [F~_VL, F~_LV, F_c], [B, 3C, H, W], equation 19."""
        return torch.cat([self.text, self.image, self.local], dim=1)


class KnowledgePlus(nn.Module):
    """MLAM, then the three parts of F_Block = [F~_VL, F~_LV, F_c], equations 16 to 19."""

    def __init__(self, visual_dim: int, text_dim: int, config: TFANetConfig) -> None:
        super().__init__()
        dim = config.mlam_dim
        self.mlam = MLAM(visual_dim, text_dim, dim, config.mlam_heads)
        self.w_v = nn.Conv1d(dim, dim, 1, bias=False)
        self.w_l = nn.Conv2d(dim, dim, 1, bias=False)
        self.local = nn.Conv2d(config.token_length, visual_dim, 3, padding=1)
        self.expand_text = nn.Conv1d(dim, visual_dim, 1, bias=False)
        self.expand_image = nn.Conv2d(dim, visual_dim, 1, bias=False)
        self.sentence = nn.Linear(text_dim, visual_dim)

    def forward(self, visual: Tensor, text: TextFeatures) -> Fusion:
        """F_V [B, C, H, W] and the text features -> the parts of the fusion block."""
        f_vl, f_lv = self.mlam(visual, text.words, text.valid)
        affinity = self.w_v(f_vl).mT @ self.w_l(f_lv).flatten(2)  # (16), [B, L, HW]
        local = self.local(affinity.unflatten(-1, visual.shape[2:]))  # F_c
        sentence = masked_mean(self.expand_text(f_vl), text.valid) + self.sentence(text.sentence)
        return Fusion(
            text=sentence[:, :, None, None].expand_as(visual),  # (17)
            image=self.expand_image(f_lv) + visual,  # (18)
            local=local,
            words=f_vl,
        )
