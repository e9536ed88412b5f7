"""The precision of a network and an engine, counted rather than assumed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tfanet.config import TFANetConfig

WEIGHT_HOLDERS = {
    "CONSTANT": ("IConstantLayer", ("weights",)),
    "CONVOLUTION": ("IConvolutionLayer", ("kernel", "bias")),
    "DECONVOLUTION": ("IDeconvolutionLayer", ("kernel", "bias")),
    "SCALE": ("IScaleLayer", ("scale", "shift", "power")),
}
COMPUTE_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")


@dataclass(frozen=True)
class PrecisionProof:
    """Types counted in a parsed network. With strong typing they are those of the engine."""

    half_weights: int
    """Elements of FP16 weights; `float_weights` counts those of FP32 weights."""
    float_weights: int
    half_weight_bytes: int
    float_weight_bytes: int
    half_weight_share: float
    """FP16 elements / (FP16 + FP32 elements), 0..1."""
    half_layer_share: float
    """Layers with an FP16 output / layers with an FP16 or FP32 output, 0..1."""
    half_compute_share: float
    """`half_layer_share` of convolutions and matrix products only."""
    layers: int


def prove_precision(trt: ModuleType, network: Any) -> PrecisionProof:
    """Count the types of weights and layer outputs in an `INetworkDefinition`."""
    elements: Counter[str] = Counter()
    size: Counter[str] = Counter()
    outputs: Counter[str] = Counter()
    compute: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type.name
        types = {layer.get_output(i).dtype.name for i in range(layer.num_outputs)}
        for name in ("HALF", "FLOAT"):
            if name in types:
                outputs[name] += 1
                compute[name] += kind in COMPUTE_LAYERS
                break
        for weights in _weights(trt, layer, kind):
            name = getattr(weights.dtype, "name", str(weights.dtype)).upper()
            name = {"FLOAT16": "HALF", "FLOAT32": "FLOAT"}.get(name, name)
            elements[name] += weights.size
            size[name] += weights.nbytes
    return PrecisionProof(
        half_weights=elements["HALF"],
        float_weights=elements["FLOAT"],
        half_weight_bytes=size["HALF"],
        float_weight_bytes=size["FLOAT"],
        half_weight_share=_share(elements),
        half_layer_share=_share(outputs),
        half_compute_share=_share(compute),
        layers=network.num_layers,
    )


def expected_half_share(config: TFANetConfig, keep_fp32: Collection[str]) -> float:
    """The share, 0..1, of a model's weights that are FP16 if the blocks `keep_fp32` stay FP32.

    The small FP32 islands inside the other blocks are not counted. Raises `UserError` for an unknown block.
    """
    import torch

    from tfanet.blocks import require_blocks
    from tfanet.model import TFANet

    with torch.device("meta"):  # shapes without values
        model = TFANet(config)
    blocks = require_blocks(model, keep_fp32)
    kept = {id(tensor): tensor.numel() for name in keep_fp32 for tensor in blocks[name].parameters()}
    return 1 - sum(kept.values()) / sum(tensor.numel() for tensor in model.parameters())


def _weights(trt: ModuleType, layer: Any, kind: str) -> Iterator[Any]:
    """The weights of a layer: NumPy arrays, or `trt.Weights` for types that NumPy does not have."""
    if kind not in WEIGHT_HOLDERS:
        return
    type_name, attributes = WEIGHT_HOLDERS[kind]
    # The bindings return layers as the base class; this is their documented cast to the derived class.
    layer.__class__ = getattr(trt, type_name)
    for attribute in attributes:
        weights = getattr(layer, attribute)
        if weights is not None and weights.size:
            yield weights


def _share(counts: Counter[str]) -> float:
    total = counts["HALF"] + counts["FLOAT"]
    return counts["HALF"] / total if total else 0.0


@dataclass(frozen=True)
class EngineLayers:
    """Layers of a finished engine after fusion, from its inspector."""

    layers: int
    half: int
    """Layers with an FP16 output."""
    floating: int
    """Layers with an FP16 or FP32 output."""

    @property
    def half_share(self) -> float:
        """`half` of `floating`, 0..1."""
        return self.half / self.floating if self.floating else 0.0


def inspect_engine(trt: ModuleType, logger: Any, plan: Any) -> EngineLayers | None:
    """The layers of the plan bytes `plan`, built with detailed profiling verbosity.

    None if the engine cannot be opened, which requires the GPU it is for, or if the inspector lists no types.
    """
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = count_layers(json.loads(text))
    return layers if layers.layers else None


def count_layers(information: dict[str, Any]) -> EngineLayers:
    """Count types in the inspector's JSON: `Format/Datatype` up to TensorRT 10, `DataType` from 11."""
    halves = floats = 0
    layers = [layer for layer in information.get("Layers", []) if isinstance(layer, dict)]
    for layer in layers:
        types = {
            str(output.get("DataType") or output.get("Format/Datatype") or "").upper()
            for output in layer.get("Outputs", [])
        }
        half = any(re.search(r"\b(HALF|FP16|FLOAT16)\b", text) for text in types)
        halves += half
        floats += half or any(re.search(r"\b(FLOAT|FP32|FLOAT32)\b", text) for text in types)
    return EngineLayers(len(layers), halves, floats)
