"""Knowledge Fusion Stage: Cross-modal Feature Scanning Module, equations 20 to 22.

Readings where the paper leaves room:
- Equation 20: "combined with the original F_Block" is a residual, F_Channel = F_Block + CSSM(F_Block).
- Equation 21: F_c there is CSSM's output, so that SCSM reads F_Channel.
- Equation 22 adds F_Space (C channels) to F_Channel (3C): it is added to each third; CFSM returns the image
  third of the last block, F_F [B, C, H, W].
- CSSM's sequence is the 3C channels; an element is the map resized to `cssm_size` x `cssm_size` pixels, so
  its width does not depend on the image's size (as in ReMamber, on which the paper builds).
"""

from __future__ import annotations

from torch import Tensor, nn

from tfanet.config import TFANetConfig
from tfanet.layers import LayerNorm2d, resize
from tfanet.mlam import Fusion
from tfanet.vmamba import SS2D


class CSSM(nn.Module):
    """Channel selective scan, along the 3C channels in both directions: [B, 3C, H, W] -> [B, 3C, H, W]."""

    def __init__(self, config: TFANetConfig) -> None:
        super().__init__()
        self.size = config.cssm_size
        pixels = self.size**2
        self.scan = SS2D(pixels, int(config.ssm_ratio * pixels), state=config.ssm_state, directions=2)

    def forward(self, block: Tensor) -> Tensor:
        small = resize(block, (self.size, self.size))
        sequence = small.flatten(2).mT.unsqueeze(2)  # [B, pixels, 1, 3C]
        scanned = self.scan(sequence).squeeze(2).mT.unflatten(2, (self.size, self.size))
        return resize(scanned, (block.shape[2], block.shape[3]))


class CFSMBlock(nn.Module):
    """CSSM, then SCSM: F_Block [B, 3C, H, W] -> F_Space + F_Channel [B, 3C, H, W]."""

    def __init__(self, dim: int, config: TFANetConfig) -> None:
        super().__init__()
        self.channel_norm = LayerNorm2d(3 * dim)
        self.cssm = CSSM(config)
        self.space_norm = LayerNorm2d(3 * dim)
        self.scsm = SS2D(dim, int(config.ssm_ratio * dim), inputs=3 * dim, state=config.ssm_state)

    def forward(self, block: Tensor) -> Tensor:
        channel = block + self.cssm(self.channel_norm(block))  # (20)
        space = self.scsm(self.space_norm(channel))  # (21), [B, C, H, W]
        return channel + space.repeat(1, 3, 1, 1)  # (22)


class CFSM(nn.Module):
    """`cfsm_blocks` blocks over F_Block = [F~_VL, F~_LV, F_c] (19) -> F_F [B, C, H, W]."""

    def __init__(self, dim: int, config: TFANetConfig) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(CFSMBlock(dim, config) for _ in range(config.cfsm_blocks)))

    def forward(self, fusion: Fusion) -> Tensor:
        return self.blocks(fusion.block).chunk(3, dim=1)[1]
