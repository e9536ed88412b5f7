"""One optimizer step: precision, accumulation, distributed gradients, clipping, the moving average."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from tfanet.model import TFANet
from tfanet.training.losses import segmentation_loss
from tfanet.training.options import TrainingOptions
from tfanet.training.processes import Processes, synchronise_norms
from tfanet.training.schedule import parameter_groups, part_of

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StepResult(NamedTuple):
    """Mean losses of one step over all processes; `stop` is whether one of them was asked to stop."""

    loss: float
    bce: float
    dice: float
    grad_norm: float
    """L2 norm of the gradient before clipping."""
    stop: bool
    updated: bool
    """False if the loss or gradient was not finite: then no weight and no statistic has changed."""


class Stepper:
    """The model on its device with its optimizer; `weights` is what is validated and saved."""

    def __init__(self, model: TFANet, options: TrainingOptions, processes: Processes) -> None:
        self.options, self.processes = options, processes
        self.device = torch.device(options.device)
        self.precision = choose_precision(options.precision, self.device)
        self.model = model.to(self.device)
        if options.channels_last:
            self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(part_of(name) not in options.freeze)
        self.ema = _MovingAverage(model, options.ema) if options.ema else None
        if options.checkpointing:
            for stage in model.vmamba.stages:
                stage.blocks = _Checkpointed(*stage.blocks)
        if options.compile:
            parts = compiled_parts(model)
            # Beyond this limit a part would run uncompiled, with a warning; at worst no two parts share code.
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, len(parts))
            for part in parts:
                part.compile(dynamic=False)
        self.call: nn.Module = model
        if processes.world > 1:
            synchronise_norms(model, self.device)
            self.call = DistributedDataParallel(model, broadcast_buffers=False)
        factors = {"backbone": options.backbone_share, "text": options.text_share, "rest": 1.0}
        peaks = {part: factor * options.lr for part, factor in factors.items()}
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, options.weight_decay, peaks), lr=options.lr, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def weights(self) -> TFANet:
        """The moving average if there is one, else the model."""
        return self.model if self.ema is None else self.ema.module  # pyright: ignore[reportReturnType]

    def autocast(self) -> torch.autocast:
        """The autocast context of the run's precision; disabled for fp32."""
        dtype = _DTYPES.get(self.precision)
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def move(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The tensors of a batch that the model and its loss need, on its device."""
        names = ("image", "tokens", "mask")
        return {name: batch[name].to(self.device, non_blocking=True) for name in names}

    def step(self, parts: list[dict[str, Any]], stop: bool) -> StepResult:
        """Train on this process's `parts` of one batch; `stop` is whether it was asked to stop."""
        statistics = [buffer.clone() for buffer in self.model.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(4, device=self.device)
        self.model.train()
        for number, part in enumerate(parts):
            batch = self.move(part)
            last = number == len(parts) - 1
            sync = (
                nullcontext()
                if last or not isinstance(self.call, DistributedDataParallel)
                else self.call.no_sync()
            )
            with sync:
                with self.autocast():
                    logits = self.call(batch["image"], batch["tokens"])
                loss = segmentation_loss(logits, batch["mask"])
                self.scaler.scale(loss.total / len(parts)).backward()
            sums[:3] += torch.stack([term.detach() for term in loss]) / (len(parts) * self.processes.world)
        sums[3] = float(stop)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip).item()
        total, bce, dice, stops = self.processes.all_reduce(sums).tolist()
        # The scaler handles a gradient that overflows as long as it can lower the scale.
        rescalable = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        updated = math.isfinite(total) and (math.isfinite(norm) or rescalable)
        if updated:
            self.scaler.step(self.optimizer)
            if self.ema is not None:
                self.ema.update_parameters(self.model)
        else:
            for buffer, before in zip(self.model.buffers(), statistics, strict=True):
                buffer.copy_(before)
        self.scaler.update()
        return StepResult(total, bce, dice, norm, stops > 0, updated)

    def state(self) -> dict[str, Any]:
        """Everything that a step changes; see `load_state`."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def choose_precision(name: str, device: torch.device) -> str:
    """Resolve `auto`: bf16 on a GPU that supports it, else fp32."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"


def compiled_parts(model: TFANet) -> list[nn.Module]:
    """The modules that `--compile` compiles one by one; equal sizes and strides share code."""
    layers = cast(nn.ModuleList, model.text.tower.transformer.resblocks)
    blocks = (block for stage in model.vmamba.stages for block in stage.blocks)
    return [*layers, *blocks, *model.plus, *model.fusion, model.decoder]


class _MovingAverage(AveragedModel):
    """The exponential moving average of the state dict; the first update copies.

    Buffers outside the state dict are constants and stay as they are. One of them, the text tower's causal
    mask, has infinities, and the average of two infinities is NaN.
    """

    def __init__(self, model: TFANet, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        count = int(self.n_averaged)
        decay = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        tensors = zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
        means: list[Tensor] = []
        values: list[Tensor] = []
        for mean, value in tensors:
            if mean.is_floating_point():
                means.append(mean)
                values.append(value)
            else:  # BatchNorm's count of batches
                mean.copy_(value)
        get_ema_multi_avg_fn(decay)(means, values, count)
        self.n_averaged += 1


class _Checkpointed(nn.Sequential):
    """The same modules under the same names; the activations of each are recomputed in the backward pass."""

    def forward(self, input: Tensor) -> Tensor:
        for module in self:
            input = checkpoint(module, input, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
        return input
