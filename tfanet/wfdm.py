"""Knowledge Intensification Stage: Word-level Linguistic Feature-guided Semantic Deepening Module, eq. 23-26.

Readings where the paper leaves room:
- Equation 23 writes F_LV and describes "word-level linguistic features derived from the first stage": those
  are the text-shaped F_VL of equation 10. The kernel is the mean of delta(F_VL) over the words, one value a
  channel; its bilinear interpolation from 1 x 1 to H x W is a broadcast. Interpolating the L words to W
  columns instead would make a word act on a column, and padding on the right edge.
- Equations 25, 26: the sum runs from the coarsest level (stage 4) to the finest; alpha is learned per step,
  sigmoid of a scalar. Every level is projected to D channels first.
- Table 4 leaves room for dense convolutions at fine resolution that the text does not mention: one 3x3 after
  each merge, one more at stride 4 and one at stride 2.
- delta's bias starts at 1, so that an untrained kernel passes the features on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tfanet.config import TFANetConfig
from tfanet.fp16 import to_fp32
from tfanet.layers import masked_mean, resize


def conv_bn_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """[B, inputs, H, W] -> [B, outputs, H, W]; the convolution's padding keeps H and W."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def foreground_score(scores: Tensor) -> Tensor:
    """Background and foreground [B, 2, H, W] -> FP32 foreground minus background [B, 1, H, W]."""
    background, foreground = to_fp32(scores).unbind(1)
    return (foreground - background)[:, None]


class WFDM(nn.Module):
    """Fused features and word features of four stages -> mask logits [B, S, S]."""

    def __init__(self, config: TFANetConfig) -> None:
        super().__init__()
        dim, levels = config.decoder_dim, len(config.vmamba_dims)
        self.lateral = nn.ModuleList(conv_bn_relu(c, dim, 1) for c in config.vmamba_dims)
        deltas = [nn.Conv1d(width, dim, 1) for width in config.word_dims]
        for delta in deltas:
            nn.init.ones_(cast(Tensor, delta.bias))
        self.delta = nn.ModuleList(deltas)
        self.alpha = nn.Parameter(torch.zeros(levels - 1))
        self.merge = nn.ModuleList(conv_bn_relu(dim, dim, 3) for _ in range(levels - 1))
        self.refine = nn.ModuleList(conv_bn_relu(dim, dim, 3) for _ in range(2))
        self.score = nn.Conv2d(dim, 2, 1)

    def no_weight_decay(self) -> set[str]:
        """The logits of the sums' weights, equation 26."""
        return {"alpha"}

    def forward(self, fused: Sequence[Tensor], words: Sequence[Tensor], valid: Tensor) -> Tensor:
        """F_F_i [B, C_i, H_i, W_i], F_VL_i [B, d_i, L], i = 1..4, valid [B, L] -> float32 [B, S, S].

        d_i is `TFANetConfig.word_dims`.
        """
        mask = self.refine[0](self.strata(fused, words, valid)[-1])
        height, width = mask.shape[2:]
        mask = self.refine[1](resize(mask, (2 * height, 2 * width)))
        return resize(self.score_map(mask), (4 * height, 4 * width)).squeeze(1)

    def strata(self, fused: Sequence[Tensor], words: Sequence[Tensor], valid: Tensor) -> list[Tensor]:
        """The accumulated masks M_1..M_4 of equations 25 and 26, coarsest first.

        Takes what `forward` takes; M_j is [B, D, H_i, W_i] with i = 5 - j: strides 32, 16, 8, 4.
        """
        levels = []
        for i, (feature, word) in enumerate(zip(fused, words, strict=True)):
            kernel = masked_mean(self.delta[i](word), valid)[:, :, None, None]  # (23)
            levels.append(kernel * self.lateral[i](feature))  # (24)
        masks = [levels.pop()]  # M_1, (25)
        for step, finer in enumerate(reversed(levels)):
            alpha = torch.sigmoid(self.alpha[step])
            up = resize(masks[-1], (finer.shape[2], finer.shape[3]))
            masks.append(self.merge[step](alpha * up + (1 - alpha) * finer))  # (26)
        return masks

    def score_map(self, mask: Tensor) -> Tensor:
        """A mask [B, D, H, W], M_j or later, -> foreground minus background score, float32 [B, 1, H, W]."""
        return foreground_score(self.score(mask))
