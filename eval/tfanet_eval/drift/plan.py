"""A TensorRT plan of the half model that also outputs every block; it runs if there is a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from tfanet.errors import UserError
from tfanet.model import TFANet
from tfanet.signature import BATCH, TensorSpec
from tfanet_engines.build import build_plan, capabilities_for
from tfanet_engines.onnx_file import CONFIG_KEY, KEEP_FP32_KEY
from tfanet_engines.options import BuildOptions
from tfanet_engines.run_plan import PlanEngine
from tfanet_engines.trt_api import find_backend
from tfanet_eval.drift.measure import Pair
from tfanet_export.deploy import deployment_model
from tfanet_export.storage import written_onnx
from tfanet_export.trace import trace_with_blocks

Run = Callable[[Pair], dict[str, list[Tensor]]]
_ONE = (1, 1, 1)


@contextmanager
def plan_with_blocks(model: TFANet, keep_fp32: Collection[str] = ()) -> Iterator[tuple[Run | None, str]]:
    """Yields a function that runs the half model's plan on this GPU and returns its blocks' outputs.

    Without a usable GPU it yields None and the reason.
    """
    options = BuildOptions(target="current", batch=_ONE)
    unusable = ""
    try:
        capabilities_for(find_backend("auto"), options)
    except UserError as error:
        unusable = str(error)
    if unusable:
        yield None, unusable
        return
    with tempfile.TemporaryDirectory() as folder:
        plan, blocks = build_plan_with_blocks(model, Path(folder), options, keep_fp32)
        extra = [spec for specs in blocks.values() for spec in specs]
        engine = PlanEngine(plan, contexts=1, cuda_graphs=False, extra=extra)
        with engine:

            def run(pair: Pair) -> dict[str, list[Tensor]]:
                outputs = engine.extra_outputs(pair.image[None], pair.tokens[None])
                return {
                    name: [torch.from_numpy(outputs[spec.name]) for spec in specs]
                    for name, specs in blocks.items()
                }

            yield run, ""


def build_plan_with_blocks(
    model: TFANet, folder: Path, options: BuildOptions, keep_fp32: Collection[str] = ()
) -> tuple[Path, dict[str, list[TensorSpec]]]:
    """Build the half model's plan with every block's output as an extra output; returns both."""
    half = deployment_model(model, fp16=True, keep_fp32=keep_fp32)
    proto, names = trace_with_blocks(half, "gpu")
    proto.metadata_props.add(key=CONFIG_KEY, value=model.config.to_json())
    if keep_fp32:
        proto.metadata_props.add(key=KEEP_FP32_KEY, value=" ".join(keep_fp32))
    path = folder / "blocks.onnx"
    with written_onnx(proto, path, path):
        extra = [name for block in names.values() for name in block]
        report = build_plan(
            path, folder / "blocks.plan", options, extra_outputs=extra, rebuild="tfanet-export trt --fp16"
        )
    specs = {name: TensorSpec(name, dtype, (BATCH, *shape[1:])) for name, dtype, shape in report.bindings}
    return report.plan, {block: [specs[name] for name in some] for block, some in names.items()}
