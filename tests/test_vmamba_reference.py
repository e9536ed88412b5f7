"""VMamba's parts compared with an independent reference: the papers' equations in NumPy, FP64, by token.

The reference shares no code with `tfanet`: convolutions are sums over explicit windows, the scan follows
explicit lists of positions. Sources: "VMamba: Visual State Space Model" (SS2D, VSS block) and "Mamba"
(discretisation with B_bar = delta B). The official names of the parameters are its only input.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import pytest
import torch

from tfanet.config import preset
from tfanet.vmamba import VMamba

Array: TypeAlias = np.ndarray

DIM = 8
CASES = [
    pytest.param(6, 10, {}, id="6x10"),
    pytest.param(10, 6, {"ssm_ratio": 1.0}, id="10x6-ratio1"),
    pytest.param(1, 7, {"ssm_state": 3}, id="1x7-state3"),
    pytest.param(5, 5, {"vmamba_dims": (40, 16, 16, 16), "mlp_ratio": 2.0}, id="5x5-rank3"),
]
"""Height and width of the map, and what differs in the config; rank is ceil(C / 16)."""


def convolution(x: Array, weight: Array, bias: Array | None, stride: int = 1, grouped: bool = False) -> Array:
    """[C, H, W] -> [O, H', W'] with zeros around; `grouped` has one filter a channel."""
    outputs, _, size, _ = weight.shape
    pad = size // 2
    height, width = x.shape[1:]
    padded = np.zeros((x.shape[0], height + 2 * pad, width + 2 * pad))
    padded[:, pad : pad + height, pad : pad + width] = x
    rows, columns = range(0, height, stride), range(0, width, stride)
    y = np.zeros((outputs, len(rows), len(columns)))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            window = padded[:, top : top + size, left : left + size]
            form = "cab,cab->c" if grouped else "cab,ocab->o"
            y[:, i, j] = np.einsum(form, window, weight[:, 0] if grouped else weight)
    return y if bias is None else y + bias[:, None, None]


def norm(x: Array, weight: Array, bias: Array) -> Array:
    """LayerNorm over the channels at each pixel."""
    centred = x - x.mean(0)
    return centred / np.sqrt((centred**2).mean(0) + 1e-5) * weight[:, None, None] + bias[:, None, None]


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def traversals(height: int, width: int) -> list[list[tuple[int, int]]]:
    """The four orders of SS2D: by rows, by columns, and both reversed."""
    by_rows = [(i, j) for i in range(height) for j in range(width)]
    by_columns = [(i, j) for j in range(width) for i in range(height)]
    return [by_rows, by_columns, by_rows[::-1], by_columns[::-1]]


def ss2d(x: Array, p: dict[str, Array]) -> Array:
    """h_t = exp(delta A) h_(t-1) + delta B u_t, y_t = C h_t + D u_t along each traversal, then their sum."""
    u = silu(convolution(convolution(x, p["in_proj.weight"], None), p["conv2d.weight"], None, grouped=True))
    inner, height, width = u.shape
    A = -np.exp(p["A_logs"]).reshape(4, inner, -1)
    states = A.shape[2]
    to_parameters = p["x_proj.weight"].reshape(4, -1, inner)
    rank = to_parameters.shape[1] - 2 * states
    to_delta = p["dt_projs.weight"].reshape(4, inner, rank)
    D = p["Ds"].reshape(4, inner)
    y = np.zeros_like(u)
    for k, positions in enumerate(traversals(height, width)):
        h = np.zeros((inner, states))
        for i, j in positions:
            token = u[:, i, j]
            parameters = to_parameters[k] @ token
            low, B, C = parameters[:rank], parameters[rank : rank + states], parameters[rank + states :]
            delta = np.log1p(np.exp(to_delta[k] @ low + p["dt_projs_bias"][k]))
            h = np.exp(delta[:, None] * A[k]) * h + (delta * token)[:, None] * B
            y[:, i, j] += h @ C + D[k] * token
    return convolution(norm(y, p["out_norm.weight"], p["out_norm.bias"]), p["out_proj.weight"], None)


def vss_block(x: Array, p: dict[str, Array]) -> Array:
    """x + SS2D(LN(x)), then x + MLP(LN(x))."""
    x = x + ss2d(norm(x, p["norm.weight"], p["norm.bias"]), part(p, "op."))
    hidden = norm(x, p["norm2.weight"], p["norm2.bias"])
    hidden = gelu(convolution(hidden, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
    return x + convolution(hidden, p["mlp.fc2.weight"], p["mlp.fc2.bias"])


def patch_embed(image: Array, p: dict[str, Array]) -> Array:
    x = convolution(image, p["0.weight"], p["0.bias"], stride=2)
    x = gelu(norm(x, p["2.weight"], p["2.bias"]))
    return norm(convolution(x, p["5.weight"], p["5.bias"], stride=2), p["7.weight"], p["7.bias"])


def downsample(x: Array, p: dict[str, Array]) -> Array:
    return norm(convolution(x, p["1.weight"], p["1.bias"], stride=2), p["3.weight"], p["3.bias"])


def part(parameters: dict[str, Array], prefix: str) -> dict[str, Array]:
    """The parameters under a prefix, without it."""
    return {n.removeprefix(prefix): value for n, value in parameters.items() if n.startswith(prefix)}


def encoder(**changes) -> VMamba:
    """A small encoder whose parameters, norms and scan included, are all noise."""
    torch.manual_seed(0)
    sizes = {"vmamba_dims": (DIM, 16, 16, 16), "vmamba_depths": (1, 1, 1, 1), "drop_path": 0.0} | changes
    model = VMamba(preset("base", **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


def parameters_of(model: VMamba, prefix: str) -> dict[str, Array]:
    return part({name: value.double().numpy() for name, value in model.state_dict().items()}, prefix)


def assert_equal(module: torch.nn.Module, x: Array, expected: Array) -> None:
    """Equal to 1e-5 of the largest value, for our modules compute in FP32."""
    with torch.inference_mode():
        actual = module(torch.from_numpy(x).float()[None])[0].double().numpy()
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def noise(*shape: int) -> Array:
    """FP64 values that FP32 holds exactly."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize(("height", "width", "changes"), CASES)
def test_vss_block(height, width, changes):
    model = encoder(**changes)
    channels = changes.get("vmamba_dims", (DIM,))[0]
    x = noise(channels, height, width)
    expected = vss_block(x, parameters_of(model, "layers.0.blocks.0."))
    assert_equal(model.stages[0].blocks[0], x, expected)


@pytest.mark.parametrize(("height", "width"), [(24, 40), (20, 12)])
def test_patch_embed(height, width):
    model = encoder()
    x = noise(3, height, width)
    assert_equal(model.patch_embed, x, patch_embed(x, parameters_of(model, "patch_embed.")))


@pytest.mark.parametrize(("height", "width"), [(6, 10), (4, 2)])
def test_downsample(height, width):
    model = encoder()
    x = noise(DIM, height, width)
    assert_equal(model.stages[0].downsample, x, downsample(x, parameters_of(model, "layers.0.downsample.")))


def test_four_stages():
    """Stage i gives its blocks' output, and the downsampled output is stage i+1's input."""
    model = encoder()
    image = noise(3, 32, 64)
    x = patch_embed(image, parameters_of(model, "patch_embed."))
    with torch.inference_mode():
        outputs = model(torch.from_numpy(image).float()[None])
    for i, output in enumerate(outputs):
        expected = vss_block(x, parameters_of(model, f"layers.{i}.blocks.0."))
        np.testing.assert_allclose(output[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        if i < 3:
            x = downsample(expected, parameters_of(model, f"layers.{i}.downsample."))
    assert len(outputs) == 4
