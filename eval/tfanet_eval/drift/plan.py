"""The blocks of a half model in TensorRT: a plan that gives their outputs, run where there is a GPU."""

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
    """A function that runs the half model's plan on this machine's GPU and gives its blocks' outputs; where
    that cannot be, None and the reason.
    """
    options = BuildOptions(target="current", batch=_ONE)
    why_none = ""
    try:
        capabilities_for(find_backend("auto"), options)
    except UserError as error:
        why_none = str(error)
    if why_none:
        yield None, why_none
        return
    with tempfile.TemporaryDirectory() as folder:
        plan, blocks = build_plan_with_blocks(model, Path(folder), options, keep_fp32)
        extra = [spec for specs in blocks.values() for spec in specs]
        engine = PlanEngine(plan, contexts=1, cuda_graphs=False, extra=extra)
        with engine:

            def run(pair: Pair) -> dict[str, list[Tensor]]:
                found = engine.extra_outputs(pair.image[None], pair.tokens[None])
                return {
                    name: [torch.from_numpy(found[spec.name]) for spec in specs]
                    for name, specs in blocks.items()
                }

            yield run, ""


def build_plan_with_blocks(
    model: TFANet, folder: Path, options: BuildOptions, keep_fp32: Collection[str] = ()
) -> tuple[Path, dict[str, list[TensorSpec]]]:
    """The plan of the half model with every block's output as one of its own, and these by block."""
    half = deployment_model(model, fp16=True, keep_fp32=keep_fp32)
    proto, names = trace_with_blocks(half, "gpu")
    proto.metadata_props.add(key=CONFIG_KEY, value=model.config.to_json())
    if keep_fp32:
        proto.metadata_props.add(key=KEEP_FP32_KEY, value=" ".join(keep_fp32))
    path = folder / "watched.onnx"
    with written_onnx(proto, path, path):
        wanted = [name for some in names.values() for name in some]
        report = build_plan(
            path, folder / "watched.plan", options, extra_outputs=wanted, rebuild="tfanet-export trt --fp16"
        )
    specs = {name: TensorSpec(name, dtype, (BATCH, *shape[1:])) for name, dtype, shape in report.bindings}
    return report.plan, {block: [specs[name] for name in some] for block, some in names.items()}
