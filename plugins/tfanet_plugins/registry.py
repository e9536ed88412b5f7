"""Making the plugins known to TensorRT: import their modules, once, before an ONNX file is parsed."""

from __future__ import annotations

from importlib import import_module

from tfanet.errors import UserError
from tfanet_plugins.target import choose_capability

PLUGINS = {
    "SelectiveScan": "tfanet_plugins.selective_scan",
    "LinearCrossAttention": "tfanet_plugins.linear_cross_attention",
    "CrossScanChunks": "tfanet_plugins.cross_selective_scan",
    "CrossScanStarts": "tfanet_plugins.cross_selective_scan",
    "CrossScanRows": "tfanet_plugins.cross_selective_scan",
    "CrossScanColumns": "tfanet_plugins.cross_selective_scan",
}
"""ONNX operation -> module that registers its plugin when it is imported."""

OLDEST = (10, 9)
"""The first TensorRT whose engines can carry a kernel's PTX."""


def register_all(capability: str | None = None) -> list[str]:
    """Register every plugin with TensorRT's registry, as `tfanet::<operation>`; the operations' names.

    `capability` is the GPU that kernels are compiled for, "8.9"; by default that of this machine. A second
    call changes that and nothing else. Raises `UserError` where TensorRT is missing or too old, and for a GPU
    that kernels cannot be compiled for.
    """
    try:
        import tensorrt  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:
        raise UserError(
            f'plugins need the full TensorRT ({error}); install it with: pip install "tfanet[tensorrt]"'
        ) from error
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < OLDEST:
        raise UserError(f"plugins need TensorRT 10.9 or later, not {tensorrt.__version__}")
    choose_capability(capability)
    for module in PLUGINS.values():
        import_module(module)
    return list(PLUGINS)
