"""Our VMamba against figures that the official implementation produced from the same weights and picture.

`vmamba_official.json` holds, for each stage, the mean, the mean magnitude and eight evenly spaced values of
the output of MzeroMiko/VMamba's `VSSM` (vmamba.py, variant v05_noz, PyTorch scan) in the size tiny_s1l8. Run
side by side, the outputs differed by at most 1.2e-5 (values up to 17).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tfanet.config import preset
from tfanet.vmamba import VMamba

FIGURES = json.loads((Path(__file__).parent / "vmamba_official.json").read_text())


def fill(model: nn.Module) -> None:
    """Weights as a formula, so that any implementation can have them: noise made of a sine's far digits.

    Parameters are numbered in the order of `named_parameters`. Norm weights lie around 1, A_logs between
    -1 and 1, and matrices keep the variance of their input.
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
            parameter.copy_(wave)


def picture(size: int) -> Tensor:
    """[1, 3, size, size] in about -2..2: waves of several directions with an edge across."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    channels = [torch.sin(9 * x + 3 * y), torch.cos(5 * x - 7 * y), torch.sin(20 * x * y)]
    return (torch.stack(channels) + (x > y).float())[None]


@pytest.fixture(scope="module")
def encoder():
    dims, depths = (96, 192, 384, 768), (2, 2, 8, 2)
    model = VMamba(preset("base", vmamba_dims=dims, vmamba_depths=depths, ssm_ratio=1.0)).eval()
    fill(model)
    return model


@pytest.mark.parametrize("size", [224, 480])
def test_stage_outputs_are_the_official_ones(encoder, size):
    with torch.inference_mode():
        outputs = encoder(picture(size))
    for output, expected in zip(outputs, FIGURES[f"tiny_s1l8 {size}"], strict=True):
        assert output.double().mean().item() == pytest.approx(expected["mean"], abs=1e-4)
        assert output.double().abs().mean().item() == pytest.approx(expected["mean_abs"], abs=1e-4)
        samples = output.flatten()[:: output.numel() // 8][:8].tolist()
        assert samples == pytest.approx(expected["samples"], abs=1e-4)


@pytest.mark.parametrize(
    ("width", "depth", "ratio", "parameters"),
    [
        pytest.param(96, 5, 2.0, 29.94e6, id="tiny_s2l5"),
        pytest.param(96, 8, 1.0, 29.48e6, id="tiny_s1l8"),
        pytest.param(96, 15, 2.0, 49.38e6, id="small_s2l15"),
        pytest.param(96, 20, 1.0, 48.24e6, id="small_s1l20"),
        pytest.param(128, 15, 2.0, 87.53e6, id="base_s2l15"),
        pytest.param(128, 20, 1.0, 85.59e6, id="base_s1l20"),
    ],
)
def test_every_official_size_has_the_official_number_of_parameters(width, depth, ratio, parameters):
    """Counted without the classifier; the official model's state dict of each size loads strictly."""
    dims = (width, 2 * width, 4 * width, 8 * width)
    with torch.device("meta"):
        model = VMamba(preset("base", vmamba_dims=dims, vmamba_depths=(2, 2, depth, 2), ssm_ratio=ratio))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, abs=6e3)
