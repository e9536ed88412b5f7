"""GPU names and the compute capabilities that plans are built for."""

from __future__ import annotations

from collections.abc import Iterable

from tfanet.errors import UserError

RTX_CAPABILITIES: dict[str, tuple[str, ...]] = {
    "8.0": ("a100", "a30"),
    "8.6": ("rtx3050", "rtx3060", "rtx3070", "rtx3080", "rtx3090", "a10", "a40", "rtxa6000"),
    "8.9": ("rtx4050", "rtx4060", "rtx4070", "rtx4080", "rtx4090", "l4", "l40", "l40s"),
    "12.0": ("rtx5050", "rtx5060", "rtx5070", "rtx5080", "rtx5090"),
    "12.1": ("gb10",),
}
"""Compute capabilities that TensorRT-RTX builds this model for, with well-known GPUs of each.

Not 7.5 (Turing): TensorRT-RTX has no FP32 matrix products for it, and the sums of the linear attention are
FP32 even in the FP16 model.
"""


def compute_capability(target: str) -> str:
    """`rtx4090`, `RTX 4080 SUPER`, `sm89` or `8.9` -> `8.9`; `UserError` for an unknown GPU."""
    name = target.lower()
    for word in (" ", "-", "_", "nvidia", "geforce", "super", "laptop"):
        name = name.replace(word, "")
    plain = name.removesuffix("ti")
    for capability, gpus in RTX_CAPABILITIES.items():
        if plain in gpus or name in (capability, sm(capability)):
            return capability
    known = "; ".join(f"{sm(capability)}: {', '.join(gpus)}" for capability, gpus in RTX_CAPABILITIES.items())
    raise UserError(f"unknown target GPU {target!r}; give one of these names or sm numbers: {known}")


def compute_capabilities(targets: str) -> tuple[str, ...]:
    """`rtx4090,sm120` -> `("8.9", "12.0")`, without duplicates; `UserError` as `compute_capability`."""
    return tuple(dict.fromkeys(compute_capability(name.strip()) for name in targets.split(",")))


def capability_here() -> str:
    """The compute capability of this machine's GPU; `UserError` if there is none."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("this machine has no NVIDIA GPU; name the GPU to build for with --target")
    return "{}.{}".format(*torch.cuda.get_device_capability())


def fits(capability: str, targets: Iterable[str]) -> bool:
    """Whether a plan for `targets` runs on a GPU of compute capability `capability`, e.g. `8.9`.

    A target is a compute capability, `8.9`, or that and every later one, `8.0+`.
    """
    here = _numbers(capability)
    return any(
        here >= _numbers(entry[:-1]) if entry.endswith("+") else here == _numbers(entry) for entry in targets
    )


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def sm(capability: str) -> str:
    """`8.9` -> `sm89`."""
    return "sm" + capability.replace(".", "")
