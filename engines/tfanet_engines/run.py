"""Open a model by its suffix: .safetensors (PyTorch), .onnx (ONNX Runtime) or .plan (TensorRT)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfanet.deprecation import renamed_arguments
from tfanet.errors import UserError
from tfanet.files import require_file
from tfanet_engines.engine import Engine
from tfanet_engines.weights import require_weights

SUFFIXES = (".safetensors", ".onnx", ".plan")


@renamed_arguments(lanes="contexts")
def open_engine(
    path: str | Path,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    image_size: int | None = None,
    native: bool = True,
    reference: str | Path | None = None,
    trust: bool = False,
    contexts: int = 2,
    cuda_graphs: bool = True,
) -> Engine:
    """Open a model by its suffix: `.safetensors`, `.onnx` or `.plan`.

    Args:
        providers: of ONNX Runtime, in order of preference; None means CUDA if there is a GPU, else the CPU.
            PyTorch follows them: `["CPUExecutionProvider"]` keeps it on the CPU.
        threads: CPU threads of one inference; None leaves it to the runtime.
        image_size: runs a checkpoint at another size than its config's; other files have a fixed size.
        native: ONNX Runtime on the CPU uses our compiled kernel (`tfanet.ops.native`); False runs the file's
            function bodies.
        reference: a checkpoint; the file must have been made of its weights.
        trust: opens a plan that this user did not build on this machine. A plan is code.
        contexts: execution contexts of a plan, i.e. concurrent calls, each with its own GPU memory.
        cuda_graphs: a plan replays calls with arrays from one CUDA graph per batch size.

    PyTorch and ONNX Runtime compute FP32 without TF32. Raises `UserError`, one line with the remedy, if the
    file is missing, empty, truncated, altered, not what its suffix says, or cannot run on this machine.
    """
    path = require_file(path, "engine")
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, not {threads}")
    if contexts < 1:
        raise UserError(f"contexts must be at least 1, not {contexts}")
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

        return PlanEngine(path, trust=trust, contexts=contexts, cuda_graphs=cuda_graphs)
    raise UserError(f"cannot open {path}: an engine is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
