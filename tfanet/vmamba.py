"""VMamba image encoder (Liu et al., "VMamba: Visual State Space Model", 2024), variant `v05_noz`.

Four stages of VSS blocks at stride 4, 8, 16 and 32, C_1..C_4 channels. Parameter names are those of the
official checkpoints. Feature maps are [B, C, H, W] between modules and channels last in memory, as
normalisations, 1x1 layers and the scan read them.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from tfanet.config import TFANetConfig
from tfanet.errors import UserError
from tfanet.files import require_file
from tfanet.fp16 import to_fp32
from tfanet.layers import LayerNorm2d, Pointwise, channels_first, channels_last
from tfanet.ops import cross_selective_scan, selective_scan

DT_RANGE = (1e-3, 1e-1)
"""dt = softplus(delta_bias) starts log-uniform in this range, as in Mamba."""


class SS2D(nn.Module):
    """2-D selective scan without gate: in_proj, depthwise 3x3, SiLU, scans, LayerNorm, out_proj.

    [B, `inputs`, H, W] -> [B, `dim`, H, W]. `directions` = 4 scans a map by rows and columns, forward and
    reversed; 2 scans a sequence (H = 1) forward and reversed.
    """

    def __init__(
        self, dim: int, inner: int, *, inputs: int | None = None, state: int = 1, directions: int = 4
    ) -> None:
        super().__init__()
        self.dt_rank = math.ceil(dim / 16)
        self.state, self.directions = state, directions
        self.in_proj = Pointwise(inputs or dim, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.x_proj = nn.Conv1d(
            directions * inner, directions * (self.dt_rank + 2 * state), 1, groups=directions, bias=False
        )
        self.dt_projs = nn.Conv1d(
            directions * self.dt_rank, directions * inner, 1, groups=directions, bias=False
        )
        self.dt_projs_bias = nn.Parameter(torch.empty(directions, inner))
        self.A_logs = nn.Parameter(torch.empty(directions * inner, state))
        self.Ds = nn.Parameter(torch.ones(directions * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = Pointwise(inner, dim, bias=False)
        self.reset_scan_parameters()

    def no_weight_decay(self) -> set[str]:
        """Decay rates, skip weights and step biases: decay would pull them away from their meaning."""
        return {"A_logs", "Ds", "dt_projs_bias"}

    def reset_scan_parameters(self) -> None:
        """Mamba's initialisation: A = -(1..N), dt log-uniform in `DT_RANGE`, D = 1."""
        with torch.no_grad():
            self.A_logs.copy_(torch.arange(1.0, self.state + 1).log().expand_as(self.A_logs))
            low, high = map(math.log, DT_RANGE)
            dt = torch.exp(low + (high - low) * torch.rand_like(self.dt_projs_bias))
            self.dt_projs_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus^-1(dt)
            bound = self.dt_rank**-0.5
            nn.init.uniform_(self.dt_projs.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_first(self.in_proj(channels_last(x)))
        x = channels_last(F.silu(self.conv2d(x)))  # [B, H, W, D]
        # dt, B and C of every direction, K (R + 2N) values a pixel, independent of the order of the pixels.
        p = F.linear(x, self.x_proj.weight.flatten(1))
        A = -torch.exp(to_fp32(self.A_logs))
        scan = cross_selective_scan if self.directions == 4 else self._bidirectional_scan
        parameters = (
            self.dt_projs.weight.flatten(1),
            A,
            to_fp32(self.Ds),
            to_fp32(self.dt_projs_bias.flatten()),
        )
        y = self.out_norm(scan(x, p, *parameters)).to(x.dtype)
        return channels_first(self.out_proj(y))

    def _bidirectional_scan(
        self, x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
    ) -> Tensor:
        """As `cross_selective_scan`, for a sequence x [B, 1, L, D], forward and reversed."""
        u = x.flatten(1, 2).mT  # [B, D, L]
        p = p.flatten(1, 2).mT.unflatten(1, (2, -1))  # [B, 2, R+2N, L]
        p = torch.stack([p[:, 0], p[:, 1].flip(-1)], dim=1)
        dt, B, C = p.split([self.dt_rank, self.state, self.state], dim=2)
        delta = dt_weight.unflatten(0, (2, -1)) @ dt  # [B, 2, D, L]
        y = selective_scan(
            torch.cat([u, u.flip(-1)], dim=1), delta.flatten(1, 2), A, B, C, D, delta_bias
        ).unflatten(1, (2, -1))
        return (y[:, 0] + y[:, 1].flip(-1)).mT.unsqueeze(1)


class Mlp(nn.Module):
    """1x1 layer, GELU, 1x1 layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, hidden)
        self.fc2 = Pointwise(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(self.fc2(F.gelu(self.fc1(channels_last(x)))))


class StochasticDepth(nn.Module):
    """In training a sample's branch is 0 with probability p, 0 <= p < 1, else 1 / (1 - p) times itself.

    As torchvision's, except that p is a buffer: in torchvision's p is a constant of the compiled code, here
    blocks that differ in p alone share their compiled code.
    """

    survival: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.drops = p > 0
        self.register_buffer("survival", torch.tensor(1 - p), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        if not (self.training and self.drops):
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) < self.survival
        return x * (kept / self.survival).to(x.dtype)


class VSSBlock(nn.Module):
    """x + SS2D(LN(x)), then x + MLP(LN(x))."""

    def __init__(self, dim: int, config: TFANetConfig, drop_path: float) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.op = SS2D(dim, int(config.ssm_ratio * dim), state=config.ssm_state)
        self.norm2 = LayerNorm2d(dim)
        self.mlp = Mlp(dim, int(config.mlp_ratio * dim))
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.op(self.norm(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """VSS blocks at one resolution and sigma, the downsampling to the next stage."""

    def __init__(self, dim: int, next_dim: int | None, config: TFANetConfig, drop_paths: list[float]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(VSSBlock(dim, config, p) for p in drop_paths))
        self.downsample = nn.Identity()
        if next_dim is not None:
            # Identities keep the indices, and so the parameter names, of the official checkpoints.
            self.downsample = nn.Sequential(
                nn.Identity(), nn.Conv2d(dim, next_dim, 3, stride=2, padding=1), nn.Identity(),
                LayerNorm2d(next_dim),
            )  # fmt: skip


class VMamba(nn.Module):
    """`patch_embed` and four `layers`; TFANet puts its alignment between them."""

    def __init__(self, config: TFANetConfig) -> None:
        super().__init__()
        dims, depths = config.vmamba_dims, config.vmamba_depths
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, dims[0] // 2, 3, stride=2, padding=1), nn.Identity(), LayerNorm2d(dims[0] // 2),
            nn.Identity(), nn.GELU(),
            nn.Conv2d(dims[0] // 2, dims[0], 3, stride=2, padding=1), nn.Identity(), LayerNorm2d(dims[0]),
        )  # fmt: skip
        blocks = sum(depths)
        drop_paths = [config.drop_path * i / max(blocks - 1, 1) for i in range(blocks)]
        self.layers = nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            first = sum(depths[:i])
            next_dim = dims[i + 1] if i + 1 < len(dims) else None
            self.layers.append(Stage(dim, next_dim, config, drop_paths[first : first + depth]))

    @property
    def stages(self) -> list[Stage]:
        """The four stages, for iterating with their type."""
        return cast("list[Stage]", list(self.layers))

    def load_official(self, source: str | Path | Mapping[str, Tensor]) -> None:
        """Load the weights of an official checkpoint, or its state dict.

        Of a classification checkpoint (`vssm*.pth`) `model` is loaded, not `model_ema`, as in the official
        code; of a detection or segmentation checkpoint the backbone. Strict: every parameter is loaded, and
        nothing is left over except the classifier and the norms `outnorm0` to `outnorm3`. Raises `UserError`
        if the file is missing or unreadable, or the checkpoint is of another variant or size.
        """
        state = source if isinstance(source, Mapping) else _read_official(source)
        official = official_names(state)
        expected = self.state_dict()
        missing, unknown = (
            sorted(expected.keys() - official.keys()),
            sorted(official.keys() - expected.keys()),
        )
        if prefix := _common_prefix(missing, unknown):
            raise UserError(
                f"the names in the VMamba checkpoint begin with {prefix!r}: save its state dict as "
                f"{{name.removeprefix({prefix!r}): tensor for name, tensor in state.items()}}"
            )
        if missing or unknown:
            raise UserError(
                f"the VMamba checkpoint is of another variant: {len(missing)} parameters are missing "
                f"{missing[:2]}, {len(unknown)} unknown {unknown[:2]}"
            )
        for name, tensor in official.items():
            if not _fits(tensor.shape, expected[name].shape):
                raise UserError(
                    f"the VMamba checkpoint is of another variant: {name} is {[*tensor.shape]}, "
                    f"this model has {[*expected[name].shape]}"
                )
        self.load_state_dict({name: t.reshape(expected[name].shape) for name, t in official.items()})

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image [B, 3, S, S] -> stage outputs [B, C_i, S/2^(i+1), S/2^(i+1)], i = 1..4."""
        x, outputs = self.patch_embed(image), []
        for stage in self.stages:
            outputs.append(stage.blocks(x))
            x = stage.downsample(outputs[-1])
        return outputs


_AFTER_THE_STAGES = re.compile(r"(classifier|outnorm\d)\.")
_PARAMETERS_OF_2024 = re.compile(r"\.(x_proj|dt_projs)_weight$")


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors in an official state dict, by our names: those of the present official code.

    The released files have `x_proj_weight` and `dt_projs_weight`, the names of the code that trained them.
    """
    if any(name.startswith("backbone.") for name in state):  # a detector or segmenter of OpenMMLab's
        state = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
    return {
        _PARAMETERS_OF_2024.sub(r".\1.weight", name): tensor
        for name, tensor in state.items()
        if not _AFTER_THE_STAGES.match(name)
    }


def _common_prefix(missing: list[str], unknown: list[str]) -> str:
    """The prefix, such as `module.`, with which every missing name is among the unknown ones; "" if none."""
    first = min(missing, key=len, default="")
    prefixes = [name.removesuffix(first) for name in unknown if first and name.endswith(f".{first}")]
    return next((p for p in prefixes if all(f"{p}{name}" in unknown for name in missing)), "")


def _fits(given: torch.Size, expected: torch.Size) -> bool:
    """Equal shapes, or a linear layer's [..., out, in] for our 1x1 convolution's [out, in, 1...]."""
    if given == expected:
        return True
    pointwise = len(expected) > 2 and all(size == 1 for size in expected[2:])
    return pointwise and len(given) >= 2 and (math.prod(given[:-1]), given[-1]) == tuple(expected[:2])


def _read_official(path: str | Path) -> Mapping[str, Tensor]:
    path = require_file(path, "VMamba checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint of weights alone; if you trust it, save its weights: "
            "torch.save(torch.load(path, weights_only=False)['model'], new_path), with 'state_dict' in place "
            "of 'model' for a detector or segmenter"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"VMamba checkpoint {path} is truncated or not a PyTorch file") from error
    state = content.get("model", content.get("state_dict", content)) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} has no VMamba state dict")
    return state
