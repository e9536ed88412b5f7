"""Alignment `transformer`: softmax attention, which the paper compares MLAM with, Table 3 (c), Table 4 (b).

    T  = [F_V W_V ; F_W W_W]                              pixels and words as HW + L tokens of width d
    T' = T + Attention(LN(T)),  T'' = T' + FFN(LN(T'))    softmax attention of every token to every token (7)
    F_V + T''_V,  F_W + T''_W                             inputs of the baseline's product

Readings where the paper leaves room: the attention is one pre-norm encoder layer a stage (Vaswani et al.,
"Attention Is All You Need", 2017) with a feed-forward part of 4d. In Table 4 it has 187.8 G MACs more than
the baseline. If pixels attended to words alone it would have less than 1 G, so pixels attend to pixels as
well; d = 352 then meets the table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfanet.baseline import WordProduct
from tfanet.config import TFANetConfig
from tfanet.mlam import Fusion
from tfanet.text import TextFeatures


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer: tokens [B, N, d], attended [B, N] bool -> [B, N, d]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """No token attends to one where `attended` is False."""
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, N, d / heads] each
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attended[:, None, None])
        tokens = tokens + self.proj(mixed.transpose(1, 2).flatten(2))
        return tokens + self.ffn(self.norm2(tokens))


class JointTransformer(nn.Module):
    """One joint encoder layer over pixels and words, then the baseline's product of both."""

    def __init__(self, visual_dim: int, text_dim: int, config: TFANetConfig) -> None:
        super().__init__()
        dim = config.transformer_dim
        self.visual_in = nn.Linear(visual_dim, dim)
        self.text_in = nn.Linear(text_dim, dim)
        self.layer = EncoderLayer(dim, config.transformer_heads)
        self.visual_out = nn.Linear(dim, visual_dim)
        self.text_out = nn.Linear(dim, text_dim)
        self.product = WordProduct(visual_dim, text_dim, config)

    def forward(self, visual: Tensor, text: TextFeatures) -> Fusion:
        """F_V [B, C, H, W] and the text features -> the parts of the fusion block; words [B, C, L]."""
        pixels, words = visual.flatten(2).mT, text.words.mT
        tokens = torch.cat([self.visual_in(pixels), self.text_in(words)], dim=1)
        everywhere = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
        tokens = self.layer(tokens, torch.cat([everywhere, text.valid], dim=1))
        to_pixels, to_words = tokens.split([pixels.shape[1], words.shape[1]], dim=1)
        pixels = pixels + self.visual_out(to_pixels)
        words = (words + self.text_out(to_words)) * text.valid[:, :, None].to(words.dtype)
        return self.product(pixels.mT.reshape_as(visual), text._replace(words=words.mT))
