"""Open a model by its suffix: .safetensors (PyTorch), .onnx (ONNX Runtime) or .plan (TensorRT)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfanet.errors import UserError
from tfanet.files import require_file
from tfanet_engines.engine import Engine
from tfanet_engines.weights import require_weights

SUFFIXES = (".safetensors", ".onnx", ".plan")


def open_engine(
    path: str | Path,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    image_size: int | None = None,
    native: bool = True,
    reference: str | Path | None = None,
    trust: bool = False,
    lanes: int = 2,
    cuda_graphs: bool = True,
) -> Engine:
    """Open a model by its suffix: `.safetensors`, `.onnx` or `.plan`.

    `providers` are ONNX Runtime's, in order of preference, and None means CUDA where there is a GPU, else
    the CPU; PyTorch follows them (`["CPUExecutionProvider"]` keeps it on the CPU). `threads` limits the CPU
    threads of one inference. `image_size` runs a checkpoint at another size than its config's; the size of
    the others is fixed. Both runtimes compute FP32 without TF32. `native` lets ONNX Runtime use our compiled
    kernel on the CPU (`tfanet.ops.native`); without it the file's own function bodies run.

    `reference` is a checkpoint whose weights the file must have been made of. Of plans: `trust` opens one
    that this user did not build on this machine (a plan is code); `lanes` is how many calls may be under way
    at once, each with its own memory; `cuda_graphs` replays calls with arrays from a graph a batch size.

    Raises `UserError`, in one line that says what to do, when the file is missing, empty, truncated,
    altered, of another kind than its suffix says, or cannot run on this machine.
    """
    path = require_file(path, "engine")
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, not {threads}")
    if lanes < 1:
        raise UserError(f"lanes must be at least 1, not {lanes}")
    if reference is not None:
        require_weights(path, reference)
    if path.suffix == ".safetensors":
        from tfanet_engines.run_torch import TorchEngine

        return TorchEngine(path, providers, threads, image_size)
    if image_size is not None:
        raise UserError(f"the image size of {path} is fixed; export the checkpoint at another --image-size")
    if path.suffix == ".onnx":
        from tfanet_engines.run_onnx import OnnxEngine

        return OnnxEngine(path, providers, threads, native=native)
    if path.suffix == ".plan":
        from tfanet_engines.run_plan import PlanEngine

        return PlanEngine(path, trust=trust, lanes=lanes, graphs=cuda_graphs)
    raise UserError(f"cannot open {path}: an engine is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
