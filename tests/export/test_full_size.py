"""Preset `base` from checkpoint to ONNX Runtime and to a plan with the commands, on photographs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tfanet
from tfanet.checkpoint import save_model
from tfanet.data.preprocess import resize_image, tokenize
from tfanet_engines import Sidecar, open_engine

pytestmark = [pytest.mark.integration, pytest.mark.slow]
PHOTOS = Path(__file__).parent.parent / "photos"
EXPRESSIONS = {
    "grace_hopper.jpg": "woman in uniform",
    "grace_hopper_flag.jpg": "the striped flag on the left",
}
MAX_GB, MAX_SECONDS = 12, 300


def inputs(config) -> tuple[np.ndarray, np.ndarray]:
    images = [resize_image(Image.open(PHOTOS / name), config.image_size) for name in EXPRESSIONS]
    return np.stack(images), tokenize(list(EXPRESSIONS.values()), config.token_length)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A checkpoint of `base`: random weights, and logits scaled to the range of trained ones."""
    torch.manual_seed(0)
    model = tfanet.build_model("base").eval()
    images, tokens = (torch.from_numpy(x) for x in inputs(model.config))
    with torch.inference_mode():
        model.decoder.score.weight.mul_(5 / model(images[:1], tokens[:1]).std())
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_model(model, path)
    return path


def export(*arguments: object) -> None:
    command = [str(Path(sys.executable).parent / "tfanet-export"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "peak memory" in done.stdout


def test_onnx_runtime_equals_pytorch_on_photographs(base, tmp_path):
    export("onnx", "-c", base, "-o", tmp_path / "base.onnx", "--pairs", 1)
    with open_engine(base) as reference:
        images, tokens = inputs(reference.config)
        expected = np.concatenate(
            [reference.infer(i[None], t[None]) for i, t in zip(images, tokens, strict=True)]
        )
    with open_engine(tmp_path / "base.onnx") as engine:
        actual = np.concatenate([engine.infer(i[None], t[None]) for i, t in zip(images, tokens, strict=True)])
    assert expected.std() > 1
    assert np.abs(actual - expected).max() <= 1e-3


def test_rtx_4090_plan_stays_within_time_and_memory(base, tmp_path):
    export("trt", "--fp16", "-c", base, "-o", tmp_path / "base.plan", "--pairs", 1)
    plan, network = (Sidecar.read(tmp_path / name) for name in ("base.plan", "base.plan.onnx"))
    assert plan.compute_capabilities == ["8.9"]
    assert plan.precision == "fp16"
    assert plan.proof["half_weight_share"] > 0.99
    assert plan.cost["seconds"] + network.cost["seconds"] <= MAX_SECONDS
    assert plan.cost["peak_memory_bytes"] <= MAX_GB * 1e9
