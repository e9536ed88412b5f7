"""The GPU of this machine, and out-of-memory errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tfanet.errors import UserError
from tfanet_engines.sidecar import Sidecar
from tfanet_engines.targets import capability_here, fits, sm

if TYPE_CHECKING:
    import torch

MIB = 1 << 20


def gpu_for(file: Path, sidecar: Sidecar) -> torch.device:
    """The current GPU; `UserError` if there is none or its compute capability is not one of the plan's."""
    import torch

    capabilities = ", ".join(sidecar.compute_capabilities or ())
    if not torch.cuda.is_available():
        raise UserError(
            f"{file} needs an NVIDIA GPU of compute capability {capabilities}, and this machine has none; "
            "run the .onnx or .safetensors file here"
        )
    here = capability_here()
    if not fits(here, sidecar.compute_capabilities or ()):
        raise UserError(
            f"{file} was built for compute capability {capabilities}, {torch.cuda.get_device_name()} has "
            f"{here}; {sidecar.remedy}, with target {sm(here)}"
        )
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def enough_memory(what: str, needed: int) -> Iterator[None]:
    """Turns PyTorch's out-of-memory errors, of GPU or pinned memory, into `UserError`."""
    import torch

    try:
        yield
    except RuntimeError as error:
        # For pinned memory PyTorch raises a plain RuntimeError with CUDA's message.
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        raise out_of_memory(what, needed) from error


def out_of_memory(what: str, needed: int) -> UserError:
    """The error to raise; `needed` is the memory of one context in bytes."""
    return UserError(
        f"not enough GPU memory to run {what}: a context needs {needed / MIB:,.0f} MiB besides the "
        "weights; free memory, open it with contexts=1, or build the plan with a smaller largest batch"
    )
