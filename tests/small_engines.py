"""Engine files that tests make in a moment: an ONNX file of a few nodes, plans that only a fake can open."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx

from tfanet.config import PRESETS, TFANetConfig
from tfanet_engines import Sidecar
from tfanet_engines.onnx_file import CONFIG_KEY
from tfanet_engines.sidecar import model_sha256

CONFIG = dataclasses.replace(PRESETS["tiny"], image_size=32, token_length=5)
GRAPH = """<ir_version: 10, opset_import: ["": 20]>
small (uint8[batch, 32, 32, 3] image, int64[batch, 5] tokens) => (float[batch, 32, 32] mask_logits) {
    values = Cast <to: int = 1> (image)
    last = Constant <value_ints: ints = [-1]> ()
    grey = ReduceMean <keepdims: int = 0> (values, last)
    total = ReduceSum (tokens, last)
    byte = Constant <value_int: int = 256> ()
    rest = Mod (total, byte)
    row = Constant <value_ints: ints = [2]> ()
    level = Unsqueeze (rest, row)
    threshold = Cast <to: int = 1> (level)
    mask_logits = Sub (grey, threshold)
}"""
"""The mean over RGB, minus the sum of the tokens modulo 256: the mask depends on both inputs."""


def write_onnx(path: Path) -> Path:
    """`GRAPH` as an ONNX file with its sidecar; images 32 x 32, five tokens."""
    model = onnx.parser.parse_model(GRAPH)
    onnx.helper.set_model_props(model, {CONFIG_KEY: CONFIG.to_json()})
    onnx.save(model, path)
    write_sidecar(path, kind="onnx", builder="torch.onnx", builder_version="2.14")
    return path


def write_plan(path: Path, capability: str, config: TFANetConfig = CONFIG, **fields: Any) -> Path:
    """A file with the sidecar of a plan, which only a fake TensorRT can open; `fields` are the sidecar's."""
    path.write_bytes(f"plan for {capability}".encode())
    values = {"builder": "tensorrt", "builder_version": "10.13.3.9", "batch": (1, 2, 4)} | fields
    write_sidecar(path, config, compute_capabilities=[capability], **values)
    return path


def write_sidecar(path: Path, config: TFANetConfig = CONFIG, **fields: Any) -> Sidecar:
    """Write and return a sidecar for the file as it is now, by default that of an FP16 plan for SM 8.9."""
    digest = model_sha256(path)
    values = {
        "kind": "plan", "weights_sha256": "ab" * 32, "precision": "fp16", "proof": {},
        "builder": "tensorrt_rtx", "builder_version": "1.7.1.116", "onnx_sha256": digest,
        "file_sha256": digest, "rebuild": "tfanet-export trt --fp16", "cost": {"seconds": 1.0},
    } | fields  # fmt: skip
    if values["kind"] == "plan":
        values = {"compute_capabilities": ["8.9"]} | values
    sidecar = Sidecar.of(config, **values)
    sidecar.write(path)
    return sidecar
