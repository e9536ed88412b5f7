"""The GPU of this machine, and what PyTorch says when its memory is at an end."""

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
    """The current GPU; `UserError` when there is none of the generations that the plan was built for."""
    import torch

    wanted = ", ".join(sidecar.compute_capabilities or ())
    if not torch.cuda.is_available():
        raise UserError(
            f"{file} needs an NVIDIA GPU of compute capability {wanted}, and this machine has none; "
            "run the .onnx or .safetensors file here"
        )
    found = capability_here()
    if not fits(found, sidecar.compute_capabilities or ()):
        raise UserError(
            f"{file} was built for compute capability {wanted}, {torch.cuda.get_device_name()} has {found}; "
            f"{sidecar.remedy}, with target {sm(found)}"
        )
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def enough_memory(what: str, needed: int) -> Iterator[None]:
    """`UserError` in the place of PyTorch's error when the GPU's, or pinned, memory is at an end."""
    import torch

    try:
        yield
    except RuntimeError as error:
        # Pinned memory that cannot be had is a plain RuntimeError with CUDA's own words.
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        raise out_of_memory(what, needed) from error


def out_of_memory(what: str, needed: int) -> UserError:
    """The error to raise; `needed` bytes of one lane."""
    return UserError(
        f"not enough GPU memory to run {what}: a lane needs {needed / MIB:,.0f} MiB besides the weights; "
        "free some, open it with lanes=1, or build the plan with a smaller largest batch"
    )
