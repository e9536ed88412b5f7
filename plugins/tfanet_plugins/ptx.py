"""Compile a Triton kernel to PTX that TensorRT can embed, for a given GPU; no GPU is needed.

TensorRT stores the kernel's text in the engine and passes it to the driver of the machine that runs the
engine, with exactly the arguments inputs, scalars, outputs. Triton's output is changed in three ways:

- two pointers to scratch memory, which Triton appends to every kernel's parameters, are removed after a check
  that the kernel does not use them. TensorRT passes null for such hidden arguments only from 10.16 on;
  before, the driver would read past the end of the argument list;
- the PTX version is the oldest that the GPU needs (`PTX_VERSIONS`), because older drivers reject the newest;
- debug information is left out, because it contains the path of the kernel's source file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfanet.errors import UserError, VerificationError

if TYPE_CHECKING:
    import triton

MAX_SHARED = 48 * 1024
"""Bytes of shared memory that a kernel may use without the opt-in attribute, which TensorRT may not set."""

ALIGNMENT = 16
"""Alignment that Triton specializes on, in bytes. TensorRT aligns tensors to 256 bytes."""

PTX_VERSIONS = {"8.0": 80, "8.6": 80, "8.9": 80, "9.0": 80, "10.0": 86, "10.3": 88, "12.0": 87, "12.1": 88}
"""Compute capability -> PTX version x 10. Drivers of CUDA 12.0, 12.7, 12.8, 12.9: 8.0, 8.6, 8.7, 8.8."""

_SCALARS = {"i32": ".u32"}
_chosen: list[str] = []
_ENTRY = re.compile(r"\.entry\s+(?P<name>\w+)\((?P<parameters>[^)]*)\)")


def choose_capability(capability: str | None) -> None:
    """Set the compute capability that kernels are compiled for, such as "8.9"; None means this machine's GPU.

    Raises `UserError` for a GPU that kernels cannot be compiled for.
    """
    _chosen[:] = [_supported(capability)] if capability else []


def chosen_capability() -> str:
    """The compute capability set by `choose_capability`, else that of this machine's GPU.

    Raises `UserError` without a GPU, or if kernels cannot be compiled for it.
    """
    if _chosen:
        return _chosen[0]
    import torch

    if not torch.cuda.is_available():
        raise UserError("no GPU on this machine: give the compute capability, as in register_all('8.9')")
    return _supported("{}.{}".format(*torch.cuda.get_device_capability()))


def _supported(capability: str) -> str:
    if capability not in PTX_VERSIONS:
        raise UserError(f"unsupported compute capability {capability}; supported: {', '.join(PTX_VERSIONS)}")
    return capability


@dataclass(frozen=True)
class Ptx:
    """A compiled kernel with all that `cuLaunchKernel` needs besides grid and arguments."""

    name: str
    text: str
    threads: int
    """Threads per block."""
    shared: int
    """Bytes of dynamic shared memory."""


def compile_ptx(
    kernel: triton.JITFunction,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    aligned: Sequence[str],
    capability: str,
    num_warps: int = 4,
) -> Ptx:
    """Compile `kernel` for GPUs of compute capability `capability`, such as "8.9".

    `types` maps the arguments in order to Triton's types (`*fp16`, `i32`), `constants` the constexpr ones to
    their values. `aligned` lists the arguments that are multiples of `ALIGNMENT` (pointers: in bytes): loads
    are 16 bytes wide only where address and row length are aligned.

    Raises `VerificationError` for a kernel that TensorRT cannot launch.
    """
    from triton import compile as triton_compile
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = dict.fromkeys(kernel.arg_names, "constexpr") | dict(types)
    source = ASTSource(
        kernel,
        signature,
        dict(constants),
        {(kernel.arg_names.index(name),): [["tt.divisibility", ALIGNMENT]] for name in aligned},
    )
    options = {
        "num_warps": num_warps,
        "ptx_version": PTX_VERSIONS[capability],
        "enable_fp_fusion": True,
    }
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True
        compiled = triton_compile(
            source, target=GPUTarget("cuda", int(capability.replace(".", "")), 32), options=options
        )
    metadata = compiled.metadata
    check_launch(metadata)
    text = without_hidden_arguments(compiled.asm["ptx"], list(types.values()))
    return Ptx(metadata.name, text, metadata.num_warps * metadata.warp_size, metadata.shared)


def check_launch(metadata: Any) -> None:
    """Raise `VerificationError` if the kernel needs something that a plugin's launch does not provide."""
    for need in ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "launch_pdl"):
        if getattr(metadata, need, 0):
            raise VerificationError(f"kernel {metadata.name} needs {need}; plugins have none")
    if metadata.num_ctas != 1:
        raise VerificationError(
            f"kernel {metadata.name} needs clusters of {metadata.num_ctas} blocks; plugins have none"
        )
    if metadata.shared > MAX_SHARED:
        raise VerificationError(
            f"kernel {metadata.name} needs {metadata.shared} B of shared memory; plugins have {MAX_SHARED} B"
        )


def without_hidden_arguments(text: str, types: Sequence[str]) -> str:
    """PTX whose one kernel has parameters for arguments of these Triton types and no others.

    Raises `VerificationError` unless they come first, in this order, and the kernel does not use the others.
    """
    entries = list(_ENTRY.finditer(text))
    if len(entries) != 1:
        raise VerificationError(f"the PTX has {len(entries)} kernels; exactly one is needed")
    (entry,) = entries
    parameters = [parameter.strip() for parameter in entry["parameters"].split(",")]
    kept, hidden = parameters[: len(types)], parameters[len(types) :]
    kinds = [".u64" if type.startswith("*") else _SCALARS[type] for type in types]
    if [parameter.split()[1] for parameter in kept] != kinds:
        actual = ", ".join(parameters)
        raise VerificationError(f"kernel {entry['name']} takes {actual}, not {', '.join(types)}")
    body = text[entry.end() :]
    used = [name for name in (line.split()[-1] for line in hidden) if re.search(rf"\b{name}\b", body)]
    if used:
        raise VerificationError(
            f"kernel {entry['name']} uses {', '.join(used)}, which TensorRT does not pass"
        )
    return f"{text[: entry.start('parameters')]}\n\t" + ",\n\t".join(kept) + f"\n){body}"
