"""The tensors between the parts of a model, with the shapes that they have in one pass.

The pass runs on the meta device, which has shapes and no data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tfanet.cfsm import CFSM, CFSMBlock
from tfanet.config import preset
from tfanet.mlam import KnowledgePlus
from tfanet.model import TFANet
from tfanet.wfdm import WFDM

_BATCH = 7
"""A size that is nothing else's, so that it is seen where the batch goes."""


@dataclass(frozen=True)
class Row:
    """A tensor: its symbol, its equation in the paper ("" without one) and its shape, B for the batch."""

    symbol: str
    equation: str
    shape: str


@dataclass(frozen=True)
class Stage:
    """The tensors of stage i, box by box."""

    blocks: int
    stride: int
    cfsm_blocks: int
    encoder: list[Row]
    plus: list[Row]
    fusion: list[Row]
    masks: list[Row]


@dataclass(frozen=True)
class Flow:
    """Everything that the figure says of a model."""

    preset: str
    parameters: int
    image: Row
    patches: Row
    tokens: Row
    text: list[Row]
    stages: list[Stage]
    answer: list[Row]


def measure(name: str) -> Flow:
    """The tensors of a model of preset `name`; `UserError` for an unknown name."""
    config = preset(name)
    with torch.device("meta"):
        model = TFANet(config).eval()
        image = torch.zeros(_BATCH, config.image_size, config.image_size, 3, dtype=torch.uint8)
        tokens = torch.zeros(_BATCH, config.token_length, dtype=torch.int64)
    decoder = cast(WFDM, model.decoder)
    watched: dict[str, nn.Module] = {
        "patches": model.vmamba.patch_embed, "text": model.text, "decoder": decoder, "score": decoder.score,
    }  # fmt: skip
    for i, stage in enumerate(model.vmamba.stages):
        plus, fusion = cast(KnowledgePlus, model.plus[i]), cast(CFSM, model.fusion[i])
        first = cast(CFSMBlock, fusion.blocks[0])
        parts = {
            "visual": stage.blocks, "mlam": plus.mlam, "local": plus.local, "block": first,
            "channel": first.space_norm, "space": first.scsm, "fused": fusion,
            "delta": decoder.delta[i], "lateral": decoder.lateral[i],
        }  # fmt: skip
        watched |= {f"{part} {i}": module for part, module in parts.items()}
    inputs, outputs = _seen(model, watched, (image, tokens))
    with torch.inference_mode():
        strata = decoder.strata(*inputs["decoder"])

    stages = []
    for i, stage in enumerate(model.vmamba.stages):
        number, last = i + 1, len(strata) - i
        f_vl, f_lv = outputs[f"mlam {i}"]
        visual, fused = outputs[f"visual {i}"], outputs[f"fused {i}"]
        stages.append(
            Stage(
                blocks=len(stage.blocks),
                stride=config.image_size // visual.shape[2],
                cfsm_blocks=config.cfsm_blocks,
                encoder=[_row(f"F_V{number}", "1" if i == 0 else "3", visual)],
                plus=[
                    _row("F_VL", "10", f_vl),
                    _row("F_LV", "15", f_lv),
                    _row("F_f", "16", inputs[f"local {i}"][0]),
                    _row("F_Block", "19", inputs[f"block {i}"][0]),
                ],
                fusion=[
                    _row("F_Channel", "20", inputs[f"channel {i}"][0]),
                    _row("F_Space", "21", outputs[f"space {i}"]),
                    _row(f"F_F{number}", "22", fused),
                ],
                masks=[
                    _row("δ(F_VL)", "23", outputs[f"delta {i}"]),
                    _row(f"F_M{last}", "24", outputs[f"lateral {i}"]),
                    _row(f"M_{last}", "25" if last == 1 else "26", strata[last - 1]),
                ],
            )
        )
    text = outputs["text"]
    return Flow(
        preset=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        image=_row("uint8", "", image),
        patches=_row("", "", outputs["patches"]),
        tokens=_row("int64", "", tokens),
        text=[_row("F_W", "", text.words), _row("F_T", "", text.sentence)],
        stages=stages,
        answer=[_row("scores", "", outputs["score"]), _row("mask logits", "", outputs["decoder"])],
    )


def _seen(
    model: nn.Module, watched: dict[str, nn.Module], arguments: tuple[Tensor, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each of `watched` is given and gives in one pass of `model`."""
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            inputs[name], outputs[name] = given, output

        return hook

    for name, module in watched.items():
        module.register_forward_hook(keep(name))
    with torch.inference_mode():
        model(*arguments)
    return inputs, outputs


def _row(symbol: str, equation: str, tensor: Tensor) -> Row:
    batch, *sizes = tensor.shape
    if batch != _BATCH:
        raise ValueError(f"{symbol} has no batch axis: {[*tensor.shape]}")
    return Row(symbol, equation, f"[{', '.join(['B', *map(str, sizes)])}]")
