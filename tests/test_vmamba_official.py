"""Our VMamba compared with values of the official implementation for the same weights and images.

`vmamba_official.json` has, for each stage, the mean, the mean magnitude and 16 evenly spaced values of the
output of `layers[i].blocks` in MzeroMiko/VMamba's `VSSM`, before the downsampling (its vmamba.py of commit
2ed52ea, variant v05_noz, PyTorch scan, FP32 on a CPU).

The largest difference of any element of the four stages, both run with the same weights, was:

| size        | waves 224 | hopper 224 | waves 480 | hopper 480 | flag 480 | largest value |
|-------------|-----------|------------|-----------|------------|----------|---------------|
| tiny_s2l5   | 2.0e-5    | 1.8e-5     | 2.1e-5    | 2.1e-5     | 1.9e-5   | 12.9          |
| tiny_s1l8   | 2.4e-5    | 2.5e-5     | 2.3e-5    | 2.5e-5     | 2.4e-5   | 18.3          |
| small_s2l15 | –         | 3.2e-5     | –         | –          | –        | 20.6          |
| small_s1l20 | –         | 4.6e-5     | –         | –          | –        | 24.9          |
| base_s2l15  | 3.4e-5    | –          | 4.1e-5    | 4.3e-5     | 3.8e-5   | 20.8          |
| base_s1l20  | –         | 4.9e-5     | –         | –          | –        | 26.9          |
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tfanet.config import TFANetConfig, preset
from tfanet.vmamba import VMamba

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
METRICS = json.loads((HERE / "vmamba_official.json").read_text())
STAGES: dict[str, list[dict]] = METRICS["stages"]
"""`<size> <image> <side>` -> the official values of the four stages."""
SIZES = {
    "tiny_s2l5": (96, 5, 2.0),
    "tiny_s1l8": (96, 8, 1.0),
    "small_s2l15": (96, 15, 2.0),
    "small_s1l20": (96, 20, 1.0),
    "base_s2l15": (128, 15, 2.0),
    "base_s1l20": (128, 20, 1.0),
}
"""Official name -> channels of stage 1, blocks of stage 3, ratio of d_inner to the channels."""


def config(size: str) -> TFANetConfig:
    width, depth, ratio = SIZES[size]
    dims = (width, 2 * width, 4 * width, 8 * width)
    return preset("base", vmamba_dims=dims, vmamba_depths=(2, 2, depth, 2), ssm_ratio=ratio)


@lru_cache(maxsize=1)
def build(size: str) -> VMamba:
    """An official size with the weights of `fill`. Do not change it."""
    model = VMamba(config(size)).eval()
    fill(model)
    return model


def fill(model: nn.Module) -> None:
    """Set weights by a formula that any implementation can reproduce: noise from the low digits of a sine.

    Parameters are numbered in the order of `named_parameters`. The norms' weights in the blocks are around 1,
    A_logs between -1 and 1, and matrices keep the variance of their input.
    """
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            digits = torch.sin(12.9898 * count + 78.233 * number) * 43758.5453
            wave = (2 * (digits - digits.floor()) - 1).view(parameter.shape)  # -1..1
            if name.endswith("norm.weight") or name.endswith("norm2.weight") or name.endswith("Ds"):
                wave = 1 + 0.2 * wave
            elif parameter.dim() > 1 and not name.endswith(("A_logs", "dt_projs_bias")):
                wave = wave * (3 / parameter[0].numel()) ** 0.5
            elif name.endswith("dt_projs_bias"):
                wave = wave - 2
            elif name.endswith("bias"):
                wave = 0.1 * wave  # larger ones would dominate the image
            parameter.copy_(wave)


def load_image(name: str, size: int) -> Tensor:
    """[1, 3, size, size]: the middle of a photograph, normalised as for ImageNet, or the formula `waves`."""
    if name == "waves":
        return waves(size)
    pixels = np.asarray(Image.open(HERE / "photos" / f"{name}.jpg"))
    cut = (pixels.shape[0] - size) // 2
    middle = torch.tensor(pixels[cut : cut + size, cut : cut + size] / 255)
    normal = (middle - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    return normal.permute(2, 0, 1).float()[None]


def waves(size: int) -> Tensor:
    """[1, 3, size, size] in about -2..2: waves of several directions with an edge across."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    channels = [torch.sin(9 * x + 3 * y), torch.cos(5 * x - 7 * y), torch.sin(20 * x * y)]
    return (torch.stack(channels) + (x > y).float())[None]


@pytest.mark.parametrize("photo", METRICS["pixel_sums"])
def test_photographs_decode_to_the_same_pixels(photo):
    pixels = np.asarray(Image.open(HERE / "photos" / f"{photo}.jpg"))
    assert pixels.shape == (480, 480, 3)
    assert pixels.sum(dtype=np.int64) == METRICS["pixel_sums"][photo]


def test_official_values_depend_on_the_image():
    """With weights that dominate the image, faults that depend on the image would pass."""
    stages = [STAGES[f"tiny_s1l8 {name} 480"] for name in ("waves", "grace_hopper", "grace_hopper_flag")]
    for stage in zip(*stages, strict=True):
        correlation = np.corrcoef([metrics["samples"] for metrics in stage])
        assert np.abs(correlation - np.eye(3)).max() < 0.9


@pytest.mark.parametrize("case", STAGES)
def test_stage_outputs_equal_the_official_ones(case):
    size, name, side = case.split()
    with torch.inference_mode():
        outputs = build(size)(load_image(name, int(side)))
    for output, expected in zip(outputs, STAGES[case], strict=True):
        assert output.double().mean().item() == pytest.approx(expected["mean"], abs=1e-4)
        assert output.double().abs().mean().item() == pytest.approx(expected["mean_abs"], abs=1e-4)
        samples = output.flatten()[:: output.numel() // 16][:16].tolist()
        assert samples == pytest.approx(expected["samples"], abs=1e-4)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("tiny_s2l5", 29.94e6),
        ("tiny_s1l8", 29.48e6),
        ("small_s2l15", 49.38e6),
        ("small_s1l20", 48.24e6),
        ("base_s2l15", 87.53e6),
        ("base_s1l20", 85.59e6),
    ],
)
def test_every_official_size_has_the_official_number_of_parameters(size, parameters):
    """Counted without the classifier; the official model's state dict of each size loads strictly."""
    with torch.device("meta"):
        model = VMamba(config(size))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, abs=6e3)
