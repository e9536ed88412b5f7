"""The GPU that kernels are compiled for: chosen once, before TensorRT asks for them."""

from __future__ import annotations

from tfanet.errors import UserError

PTX_VERSIONS = {"8.0": 80, "8.6": 80, "8.9": 80, "9.0": 80, "10.0": 86, "10.3": 88, "12.0": 87, "12.1": 88}
"""Compute capability -> PTX version x 10. CUDA 12.0 drivers have 8.0; 12.7, 12.8, 12.9 have 8.6, 8.7, 8.8."""

_chosen: list[str] = []


def choose_capability(capability: str | None) -> None:
    """Compile for "8.9", say; None is the GPU of this machine, looked up when a kernel is compiled.

    Raises `UserError` for a GPU that kernels cannot be compiled for.
    """
    _chosen[:] = [_known(capability)] if capability else []


def chosen_capability() -> str:
    """The chosen compute capability, else that of this machine's GPU.

    Raises `UserError` where there is none, or kernels cannot be compiled for it.
    """
    if _chosen:
        return _chosen[0]
    import torch

    if not torch.cuda.is_available():
        raise UserError("no GPU here: name the one to compile kernels for, register_all('8.9')")
    return _known("{}.{}".format(*torch.cuda.get_device_capability()))


def _known(capability: str) -> str:
    if capability not in PTX_VERSIONS:
        raise UserError(f"no kernels for compute capability {capability}; known: {', '.join(PTX_VERSIONS)}")
    return capability
