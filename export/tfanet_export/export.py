"""From a model to a verified ONNX file with its sidecar."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tfanet.checkpoint import weights_sha256
from tfanet.console import peak_memory, working
from tfanet.errors import UserError
from tfanet.files import atomic_path
from tfanet.iou import intersection_union, mean_iou, overall_iou
from tfanet.model import TFANet
from tfanet.signature import signature_of
from tfanet_engines import Sidecar, open_engine
from tfanet_engines.onnx_file import CONFIG_KEY, KEEP_FP32_KEY, WEIGHTS_KEY, read_onnx
from tfanet_engines.parity import Gate, ParityFigures, compare_logits, gate
from tfanet_engines.sidecar import model_sha256, sidecar_path
from tfanet_export.deploy import deployment_model
from tfanet_export.functions import DOMAIN, Target
from tfanet_export.half_arithmetic import require_finite
from tfanet_export.precision import Precision
from tfanet_export.storage import file_bytes, written_onnx
from tfanet_export.trace import check_graph, functions_of, trace
from tfanet_plugins import mark_plugin_nodes

if TYPE_CHECKING:
    import onnx

VERIFICATION_PAIRS = 16


@dataclass(frozen=True)
class ExportReport:
    """What `export_onnx` made and measured."""

    path: Path
    precision: str
    target: Target
    nodes: Counter[str]
    """Nodes of the graph by operation; those of the domain `tfanet` carry its name."""
    bytes: int
    """On disk, external weights included."""
    parity: ParityFigures
    """ONNX Runtime against the FP32 model in PyTorch."""
    miou: float
    """Of ONNX Runtime's masks on the verification pairs, at S x S, 0..1."""
    reference_miou: float
    seconds: float
    peak_memory_bytes: int
    """Of this process so far."""


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
    """Write `model` as an ONNX file at `path`, verified, with a sidecar beside it.

    With `fp16` the half model with its FP32 islands is exported (`deploy.deployment_model`). `target` chooses
    the scan's function body; the graph is the same. The new file is run by ONNX Runtime on `pairs` synthetic
    pairs and compared with `model` before it gets its name: `VerificationError` when it is not within the
    tolerance of its precision (`tfanet_engines.parity`). `rebuild` is the command to note in the sidecar.

    The blocks that `precision_file` names stay FP32. With `check_half` the FP16 model also runs one pair in
    FP16 arithmetic in PyTorch: `VerificationError` with the block's name when it overflows there.
    """
    started, path = time.perf_counter(), Path(path)
    if path.suffix != ".onnx":
        raise UserError(f"{path} must end in .onnx")
    precision = "fp16" if fp16 else "fp32"
    if precision_file is not None:
        if not fp16:
            raise UserError("a precision file says what stays FP32 in an FP16 model: give --fp16 with it")
        precision_file.require_fit(model)
    identity = weights_sha256(model)
    keep = precision_file.keep_fp32 if precision_file else ()
    deployed = deployment_model(model, fp16=fp16, keep_fp32=keep)
    if fp16 and check_half:
        with working("one pair in FP16 arithmetic"):
            images, tokens, _ = verification_pairs(model, 1)
            require_finite(deployed, torch.from_numpy(images), torch.from_numpy(tokens))
    with atomic_path(path) as temporary:
        with working(f"tracing the {precision} model"):
            proto = trace(deployed, target)
        _describe(proto, model, identity, precision, keep)
        with written_onnx(proto, temporary, path):
            with working(f"ONNX Runtime against PyTorch on {pairs} pairs"):
                verdict, miou, reference_miou = verify(model, temporary, pairs, precision)
            verdict.require()
    digest, nodes = model_sha256(path), check_graph(proto, signature_of(model.config))
    size, seconds = file_bytes(path), time.perf_counter() - started
    Sidecar.of(
        model.config,
        kind="onnx",
        weights_sha256=identity,
        precision=precision,
        proof=weight_types(proto),
        builder="torch.onnx",
        builder_version=torch.__version__,
        onnx_sha256=digest,
        file_sha256=digest,
        rebuild=rebuild or f"tfanet-export onnx -c CHECKPOINT -o {path}" + (" --fp16" if fp16 else ""),
        cost={
            "seconds": round(seconds, 1),
            "peak_memory_bytes": peak_memory(),
            "bytes": size,
            "nodes": sum(nodes.values()),
        },
        parity=verdict.figures.to_dict(),
    ).write(path)
    return ExportReport(
        path=path,
        precision=precision,
        target=target,
        nodes=nodes,
        bytes=size,
        parity=verdict.figures,
        miou=miou,
        reference_miou=reference_miou,
        seconds=seconds,
        peak_memory_bytes=peak_memory(),
    )


def verify(model: TFANet, path: str | Path, pairs: int, precision: str) -> tuple[Gate, float, float]:
    """Run the file and `model` (FP32, PyTorch) on the same synthetic pairs.

    Returns the gate of `precision`, the file's mIoU and the model's mIoU, both at S x S.
    """
    images, tokens, truth = verification_pairs(model, pairs)
    figures: list[ParityFigures] = []
    ours, theirs = [], []
    model = model.eval()
    # What is verified is what the file says; our compiled kernel would stand in for a part of it.
    with open_engine(path, native=False) as engine, torch.inference_mode():
        for i in range(0, pairs, 4):
            batch = slice(i, i + 4)
            expected = model(torch.from_numpy(images[batch]), torch.from_numpy(tokens[batch])).numpy()
            actual = engine.infer(images[batch], tokens[batch])
            figures += map(compare_logits, expected, actual)
            ours += map(intersection_union, actual > 0, truth[batch] > 0)
            theirs += map(intersection_union, expected > 0, truth[batch] > 0)
    scores = [{"mIoU": mean_iou(counts), "oIoU": overall_iou(counts)} for counts in (ours, theirs)]
    drops = {name: scores[1][name] - scores[0][name] for name in scores[0]}
    return gate(figures, precision, drops), scores[0]["mIoU"], scores[1]["mIoU"]


def verification_pairs(model: TFANet, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` synthetic pairs for `model`: images [n, S, S, 3], tokens [n, L], truth [n, S, S] in {0, 1}."""
    from tfanet.data.shapes import render_pair
    from tfanet.data.transforms import resize_image, resize_mask, tokenize

    size = model.config.image_size
    drawn = [render_pair(seed=1, index=i) for i in range(count)]
    images = np.stack([resize_image(picture, size) for picture, _, _ in drawn])
    tokens = tokenize([sentence for _, sentence, _ in drawn], model.config.token_length)
    truth = np.stack([resize_mask(mask, size) for _, _, mask in drawn])
    return images, tokens, truth


def retarget(onnx_path: str | Path, out: str | Path, target: Target, *, rebuild: str | None = None) -> Path:
    """Write the same graph with the function bodies for `target` to `out`, and a sidecar if there was one.

    The new sidecar has no parity figures, for the other bodies were not run. `rebuild` is the command to
    note in it.

    Raises `UserError` when `onnx_path` is not an ONNX file of this project.
    """
    import onnx

    source = read_onnx(onnx_path)
    proto = onnx.load(source.path)
    if not any(function.domain == DOMAIN for function in proto.functions):
        raise UserError(f"{onnx_path} holds no {DOMAIN} functions; make it with tfanet-export onnx")
    del proto.functions[:]
    proto.functions.extend(functions_of(source.config, target))
    mark_plugin_nodes(proto)
    with atomic_path(out) as temporary, written_onnx(proto, temporary, Path(out)):
        pass
    if source.sidecar:
        digest = model_sha256(out)
        again = rebuild or source.sidecar.rebuild
        changed = dataclasses.replace(
            source.sidecar, onnx_sha256=digest, file_sha256=digest, rebuild=again, parity=None
        )
        changed.write(out)
    else:
        sidecar_path(out).unlink(missing_ok=True)  # it would be that of a file which was here before
    return Path(out)


def weight_types(proto: onnx.ModelProto) -> dict[str, int | float]:
    """Weights in the file by floating type: elements in FP16 and FP32, and the share of FP16, 0..1."""
    import onnx

    counts = Counter()
    for tensor in proto.graph.initializer:
        counts[tensor.data_type] += int(np.prod(tensor.dims, dtype=np.int64))
    half, single = counts[onnx.TensorProto.FLOAT16], counts[onnx.TensorProto.FLOAT]
    share = half / (half + single) if half + single else 0.0
    return {"half_weights": half, "float_weights": single, "half_weight_share": share}


def _describe(
    proto: onnx.ModelProto, model: TFANet, identity: str, precision: str, keep: Collection[str]
) -> None:
    """Metadata inside the file, for those who meet it without its sidecar."""
    from importlib.metadata import version

    values = {
        CONFIG_KEY: model.config.to_json(),
        WEIGHTS_KEY: identity,
        "tfanet.precision": precision,
        "tfanet.version": version("tfanet"),
    }
    if keep:
        values[KEEP_FP32_KEY] = " ".join(keep)
    for key, value in values.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name, proto.producer_version = "tfanet", version("tfanet")
