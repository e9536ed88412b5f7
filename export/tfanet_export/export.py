"""Export a model to a verified ONNX file with a sidecar."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from tfanet.checkpoint import weights_sha256
from tfanet.config import TFANetConfig
from tfanet.console import peak_memory, working
from tfanet.errors import UserError
from tfanet.files import atomic_path
from tfanet.iou import intersection_union, mean_iou, overall_iou
from tfanet.model import TFANet
from tfanet.signature import signature_of
from tfanet_engines import Sidecar, open_engine
from tfanet_engines.onnx_file import CONFIG_KEY, KEEP_FP32_KEY, WEIGHTS_KEY, read_onnx
from tfanet_engines.parity import Gate, ParityMetrics, compare_logits, gate
from tfanet_engines.sidecar import model_sha256, sidecar_path
from tfanet_export.deploy import deployment_model
from tfanet_export.half_arithmetic import require_finite
from tfanet_export.precision import Precision
from tfanet_export.storage import file_bytes, written_onnx
from tfanet_export.trace import check_graph, functions_of, trace
from tfanet_plugins import mark_plugin_nodes
from tfanet_plugins.operations import DOMAIN, Target

if TYPE_CHECKING:
    import onnx

VERIFICATION_PAIRS = 16


@dataclass(frozen=True)
class ExportReport:
    """The file that `export_onnx` wrote, and what it measured."""

    path: Path
    precision: Literal["fp32", "fp16"]
    target: Target
    nodes: Counter[str]
    """Number of nodes of the graph by operation; `tfanet::Name` for those of the domain `tfanet`."""
    bytes: int
    """Size on disk, external weights included."""
    parity: ParityMetrics
    """Error of ONNX Runtime against the FP32 model in PyTorch."""
    miou: float
    """mIoU of ONNX Runtime's masks on the verification pairs, at S x S, 0..1."""
    reference_miou: float
    """The same of PyTorch's masks."""
    seconds: float
    peak_memory_bytes: int
    """Peak memory of this process so far."""


def export_onnx(
    model: TFANet,
    path: str | Path,
    *,
    fp16: bool = False,
    target: Target = "cpu",
    pairs: int = VERIFICATION_PAIRS,
    rebuild: str | None = None,
    precision_file: Precision | None = None,
    check_half: bool = True,
) -> ExportReport:
    """Write `model` to `path` as a verified ONNX file, and its sidecar next to it.

    Args:
        fp16: export the half model with FP32 islands (`deploy.deployment_model`).
        target: the runtime that the scans' function bodies are written for; the graph is the same.
        pairs: number of synthetic pairs that ONNX Runtime and `model` are compared on.
        rebuild: the command to store in the sidecar.
        precision_file: lists the blocks that stay FP32; only with `fp16`.
        check_half: with `fp16`, also run one pair in FP16 arithmetic in PyTorch.

    Raises `VerificationError` when the file differs from `model` by more than the tolerance of its precision
    (`tfanet_engines.parity`), or when a block overflows in FP16 arithmetic; no file is left then. Raises
    `UserError` for a path that does not end in .onnx and for a precision file that does not fit.
    """
    started, path = time.perf_counter(), Path(path)
    if path.suffix != ".onnx":
        raise UserError(f"{path} must end in .onnx")
    precision: Literal["fp32", "fp16"] = "fp16" if fp16 else "fp32"
    if precision_file is not None:
        if not fp16:
            raise UserError("a precision file keeps blocks of an FP16 model in FP32; give --fp16 with it")
        precision_file.require_fit(model)
    keep = precision_file.keep_fp32 if precision_file else ()
    deployed = deployment_model(model, fp16=fp16, keep_fp32=keep)
    if fp16 and check_half:
        with working("one pair in FP16 arithmetic"):
            images, tokens, _ = verification_pairs(model, 1)
            require_finite(deployed, torch.from_numpy(images), torch.from_numpy(tokens))
    with atomic_path(path) as temporary:
        with working(f"tracing the {precision} model"):
            proto = trace(deployed, target)
        weights = weights_sha256(model)
        _add_metadata(proto, model, weights, precision, keep)
        with written_onnx(proto, temporary, path):
            with working(f"ONNX Runtime against PyTorch on {pairs} pairs"):
                verdict, miou, reference_miou = verify(model, temporary, pairs, precision)
            verdict.require()
    report = ExportReport(
        path=path,
        precision=precision,
        target=target,
        nodes=check_graph(proto, signature_of(model.config)),
        bytes=file_bytes(path),
        parity=verdict.metrics,
        miou=miou,
        reference_miou=reference_miou,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=peak_memory(),
    )
    command = f"tfanet-export onnx -c CHECKPOINT -o {path}" + (" --fp16" if fp16 else "")
    _write_sidecar(report, model.config, weights, weight_types(proto), rebuild or command)
    return report


def _write_sidecar(
    report: ExportReport, config: TFANetConfig, weights: str, proof: dict[str, int | float], rebuild: str
) -> None:
    digest = model_sha256(report.path)
    Sidecar.of(
        config,
        kind="onnx",
        weights_sha256=weights,
        precision=report.precision,
        proof=proof,
        builder="torch.onnx",
        builder_version=torch.__version__,
        onnx_sha256=digest,
        file_sha256=digest,
        rebuild=rebuild,
        cost={
            "seconds": round(report.seconds, 1),
            "peak_memory_bytes": report.peak_memory_bytes,
            "bytes": report.bytes,
            "nodes": sum(report.nodes.values()),
        },
        parity=report.parity.to_dict(),
    ).write(report.path)


def verify(model: TFANet, path: str | Path, pairs: int, precision: str) -> tuple[Gate, float, float]:
    """Run the file and `model` (FP32, PyTorch) on the same synthetic pairs.

    Returns the gate of `precision`, the file's mIoU and the model's mIoU, both at S x S, 0..1.
    """
    images, tokens, targets = verification_pairs(model, pairs)
    parity: list[ParityMetrics] = []
    onnx_counts, torch_counts = [], []
    model = model.eval()
    # The function bodies are what is verified; the compiled kernel would replace some of them.
    with open_engine(path, native=False) as engine, torch.inference_mode():
        for i in range(0, pairs, 4):
            batch = slice(i, i + 4)
            expected = model(torch.from_numpy(images[batch]), torch.from_numpy(tokens[batch])).numpy()
            actual = engine.infer(images[batch], tokens[batch])
            parity += map(compare_logits, expected, actual)
            onnx_counts += map(intersection_union, actual > 0, targets[batch] > 0)
            torch_counts += map(intersection_union, expected > 0, targets[batch] > 0)
    scores, reference = (
        {"mIoU": mean_iou(counts), "oIoU": overall_iou(counts)} for counts in (onnx_counts, torch_counts)
    )
    drops = {name: reference[name] - score for name, score in scores.items()}
    return gate(parity, precision, drops), scores["mIoU"], reference["mIoU"]


def verification_pairs(model: TFANet, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` synthetic pairs: images [n, S, S, 3], tokens [n, L], targets [n, S, S] in {0, 1}."""
    from tfanet.data.preprocess import resize_image, resize_mask, tokenize
    from tfanet.data.shapes import render_pair

    size = model.config.image_size
    drawn = [render_pair(seed=1, index=i) for i in range(count)]
    images = np.stack([resize_image(image, size) for image, _, _ in drawn])
    tokens = tokenize([expression for _, expression, _ in drawn], model.config.token_length)
    targets = np.stack([resize_mask(mask, size) for _, _, mask in drawn])
    return images, tokens, targets


def retarget(onnx_path: str | Path, out: str | Path, target: Target, *, rebuild: str | None = None) -> Path:
    """Write the same graph with the function bodies for `target` to `out`; returns `out`.

    If `onnx_path` has a sidecar, `out` gets one too: without parity, because the new bodies were not run, and
    with the command `rebuild`. Raises `UserError` when `onnx_path` was not exported by tfanet.
    """
    import onnx

    source = read_onnx(onnx_path)
    proto = onnx.load(source.path)
    if not any(function.domain == DOMAIN for function in proto.functions):
        raise UserError(f"{onnx_path} has no {DOMAIN} functions; make it with tfanet-export onnx")
    del proto.functions[:]
    proto.functions.extend(functions_of(source.config, target))
    mark_plugin_nodes(proto)
    with atomic_path(out) as temporary, written_onnx(proto, temporary, Path(out)):
        pass
    if source.sidecar:
        digest = model_sha256(out)
        command = rebuild or source.sidecar.rebuild
        sidecar = dataclasses.replace(
            source.sidecar, onnx_sha256=digest, file_sha256=digest, rebuild=command, parity=None
        )
        sidecar.write(out)
    else:
        sidecar_path(out).unlink(missing_ok=True)  # a sidecar here belongs to an earlier file of this name
    return Path(out)


def weight_types(proto: onnx.ModelProto) -> dict[str, int | float]:
    """Weights in the file by floating type: elements in FP16 and in FP32, and FP16's share of them, 0..1."""
    import onnx

    counts = Counter()
    for tensor in proto.graph.initializer:
        counts[tensor.data_type] += int(np.prod(tensor.dims, dtype=np.int64))
    half, single = counts[onnx.TensorProto.FLOAT16], counts[onnx.TensorProto.FLOAT]
    share = half / (half + single) if half + single else 0.0
    return {"half_weights": half, "float_weights": single, "half_weight_share": share}


def _add_metadata(
    proto: onnx.ModelProto, model: TFANet, weights: str, precision: str, keep: Collection[str]
) -> None:
    """Add the metadata that makes the file readable without its sidecar."""
    from importlib.metadata import version

    values = {
        CONFIG_KEY: model.config.to_json(),
        WEIGHTS_KEY: weights,
        "tfanet.precision": precision,
        "tfanet.version": version("tfanet"),
    }
    if keep:
        values[KEEP_FP32_KEY] = " ".join(keep)
    for key, value in values.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name, proto.producer_version = "tfanet", version("tfanet")
