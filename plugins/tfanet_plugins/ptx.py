"""Triton kernel -> PTX that TensorRT can embed: built for a named GPU, none needed, and free of what is ours.

TensorRT keeps the text of a kernel in the engine and gives it to the driver of the machine that runs the
engine, with exactly the arguments inputs, scalars, outputs. Three things that Triton writes do not fit that:

- two pointers to scratch memory after the last argument, in every kernel. TensorRT fills such hidden
  arguments with null from 10.16 on; before, the driver would read past the end of the argument list. They are
  cut out here, after a proof that the kernel does not use them;
- the newest PTX version that the compiler knows, which older drivers refuse: `target.PTX_VERSIONS` has the
  oldest that each GPU needs;
- the path of the kernel's source file, for debuggers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfanet.errors import VerificationError
from tfanet_plugins.target import PTX_VERSIONS

if TYPE_CHECKING:
    import triton

MAX_SHARED = 48 * 1024
"""Bytes of shared memory that a kernel may have without asking the driver for more; TensorRT may not ask."""

ALIGNMENT = 16
"""What Triton calls aligned. TensorRT's tensors are, to 256 bytes."""

_SCALARS = {"i32": ".u32"}
_ENTRY = re.compile(r"\.entry\s+(?P<name>\w+)\((?P<parameters>[^)]*)\)")


@dataclass(frozen=True)
class Ptx:
    """A compiled kernel: what `cuLaunchKernel` needs besides grid and arguments."""

    name: str
    text: str
    threads: int
    """Threads of a block."""
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
    """Compile `kernel` for GPUs of `capability`, "8.9" for one.

    `types` maps the arguments in order to Triton's types (`*fp16`, `i32`), `constants` the constexpr ones to
    their values. `aligned` names the arguments that are multiples of `ALIGNMENT`, pointers in bytes: only
    where address and row length are do loads become 16 bytes wide.

    Raises `VerificationError` for a kernel that TensorRT could not launch.
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
    """Raise `VerificationError` where Triton's launch of a kernel gives it what a plugin's launch cannot."""
    for need in ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "launch_pdl"):
        if getattr(metadata, need, 0):
            raise VerificationError(f"kernel {metadata.name} needs {need}; a plugin has none")
    if metadata.num_ctas != 1:
        raise VerificationError(f"kernel {metadata.name} needs clusters of {metadata.num_ctas} blocks")
    if metadata.shared > MAX_SHARED:
        raise VerificationError(
            f"kernel {metadata.name} needs {metadata.shared} B of shared memory; a plugin has {MAX_SHARED}"
        )


def without_hidden_arguments(text: str, types: Sequence[str]) -> str:
    """PTX whose one kernel has parameters for arguments of these Triton types and no others.

    Raises `VerificationError` unless they come first, in this order, and the kernel uses none of the others.
    """
    entries = list(_ENTRY.finditer(text))
    if len(entries) != 1:
        raise VerificationError(f"PTX with {len(entries)} kernels; one is needed")
    (entry,) = entries
    parameters = [parameter.strip() for parameter in entry["parameters"].split(",")]
    kept, hidden = parameters[: len(types)], parameters[len(types) :]
    kinds = [".u64" if type.startswith("*") else _SCALARS[type] for type in types]
    if [parameter.split()[1] for parameter in kept] != kinds:
        found = ", ".join(parameters)
        raise VerificationError(f"kernel {entry['name']} takes {found}, not {', '.join(types)}")
    body = text[entry.end() :]
    used = [name for name in (line.split()[-1] for line in hidden) if re.search(rf"\b{name}\b", body)]
    if used:
        raise VerificationError(
            f"kernel {entry['name']} reads {', '.join(used)}; TensorRT does not give that"
        )
    return f"{text[: entry.start('parameters')]}\n\t" + ",\n\t".join(kept) + f"\n){body}"
