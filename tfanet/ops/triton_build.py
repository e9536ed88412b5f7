"""Triton kernels compiled for a GPU that need not be here, and what they cost there.

`python -m tfanet.ops.triton_build` prints registers, spills and shared memory of every kernel of `tfanet.ops`
for every architecture in `CAPABILITIES`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet.errors import UserError

if TYPE_CHECKING:
    import triton

CAPABILITIES = (80, 89, 90, 120)
"""Compute capabilities x 10: A100, RTX 40, H100 and H200, RTX 50."""

HALF = {
    "p_u", "p_delta", "p_B", "p_C", "p_du", "p_ddelta", "p_x", "p_z", "p_p", "p_W",
    "p_q", "p_k", "p_v", "p_out", "p_dout", "p_dq", "p_dk", "p_dv",
}  # fmt: skip
"""Kernel arguments in the dtype of the activations; other pointers are FP32, other arguments int32."""


@dataclass(frozen=True)
class Case:
    """A kernel at the sizes of one call: its constexpr arguments and its warps."""

    name: str
    kernel: triton.JITFunction
    constants: Mapping[str, Any]
    num_warps: int


@dataclass(frozen=True)
class Build:
    """A kernel compiled for one architecture. Sizes in bytes, the first three a thread."""

    ptx: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int
    """Static and dynamic, a block."""
    scratch: int
    """Memory that the launcher would have to allocate; a plugin cannot."""


def build(case: Case, capability: int, *, half: str = "fp16") -> Build:
    """Compile `case` with activations of type `half` (`fp16`, `bf16` or `fp32`) for sm_`capability`.

    Pointers are taken as multiples of 16 bytes, as PyTorch and TensorRT allocate them. Raises `UserError`
    under Triton's interpreter, which has no compiler.
    """
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = getattr(case.kernel, "arg_names", None)
    if names is None or knobs.runtime.interpret:
        raise UserError("kernels cannot be compiled under Triton's interpreter; unset TRITON_INTERPRET")
    signature = {name: _type(name, case.constants, half) for name in names}
    pointers = [i for i, type_name in enumerate(signature.values()) if type_name.startswith("*")]
    source = ASTSource(
        case.kernel, signature, dict(case.constants), {(i,): [["tt.divisibility", 16]] for i in pointers}
    )
    options = {"num_warps": case.num_warps, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    metadata = compiled.metadata
    ptx = compiled.asm["ptx"]
    registers, stores, loads, static = _assembled(ptx, capability)
    scratch = metadata.global_scratch_size + metadata.profile_scratch_size
    return Build(ptx, registers, stores, loads, static + metadata.shared, scratch)


def _type(name: str, constants: Mapping[str, Any], half: str) -> str:
    if name in constants:
        return "constexpr"
    if not name.startswith("p_"):
        return "i32"
    return f"*{half}" if name in HALF else "*fp32"


def _assembled(ptx: str, capability: int) -> tuple[int, int, int, int]:
    """Registers, bytes spilled and read back a thread, and static shared memory, as ptxas reports them."""
    from triton import knobs

    target = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    assert target is not None
    tool = knobs.nvidia.ptxas_blackwell if capability >= 90 else knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        report = subprocess.run(
            [tool.path, "-v", f"--gpu-name={target[1]}", source, "-o", source.with_suffix(".cubin")],
            check=True, capture_output=True, text=True,
        ).stderr  # fmt: skip

    def figure(pattern: str) -> int:
        found = re.search(pattern, report)
        return int(found[1]) if found else 0

    return (
        figure(r"Used (\d+) registers"), figure(r"(\d+) bytes spill stores"),
        figure(r"(\d+) bytes spill loads"), figure(r"(\d+) bytes smem"),
    )  # fmt: skip


STAGES = ((120, 256, 8), (60, 512, 16), (30, 1024, 32), (15, 2048, 64))
"""Side of the map, channels and rank of dt in the four stages of preset `base`."""


def cases(half: str = "fp16") -> Iterator[Case]:
    """Every kernel at the sizes of preset `base`, the scan also with 16 states; `half` as in `build`."""
    for side, channels, _ in STAGES:
        yield from _scan(side * side, channels, 1)
    yield from _scan(900, 1024, 16)
    yield from _attention()
    for side, channels, rank in STAGES:
        yield from _cross_scan(side, channels, rank, half)


def _scan(length: int, dim: int, states: int) -> Iterator[Case]:
    from triton import next_power_of_2

    from tfanet.ops import selective_scan_triton as scan

    tag = f"{length} x {dim}" + (f", N = {states}" if states > 1 else "")
    sizes = {"N": states, "BN": next_power_of_2(states), "ALIGN": scan.alignment(length)}
    tile = scan.forward_tile(length, dim)
    constants = sizes | {"BR": tile.rows, "BL": tile.tokens, "STAGES": tile.num_stages}
    yield Case(f"scan {tag}", scan.selective_scan_kernel, constants, tile.num_warps)
    tile = scan.backward_tile(length, dim, states)
    constants = sizes | {"BR": tile.rows, "BL": tile.tokens}
    yield Case(f"scan backward {tag}", scan.selective_scan_backward_kernel, constants, tile.num_warps)
    starts = constants | {"STAGES": tile.num_stages}
    yield Case(f"scan starts {tag}", scan.selective_scan_starts_kernel, starts, tile.num_warps)


def _attention() -> Iterator[Case]:
    from tfanet.ops import linear_cross_attention_triton as attention

    heads, block = {"BD": attention.padded(16)}, attention.BLOCK
    queries, keys = heads | {"BM": block}, heads | {"BN": block}
    yield Case("attention", attention.linear_cross_attention_kernel, queries | keys, 4)
    for unit in (False, True):
        constants = heads | {"BL": block, "SPAN": attention.SPLIT, "UNIT": unit}
        yield Case("attention products" + " of units" * unit, attention.products_kernel, constants, 4)
    yield Case("attention of products", attention.attend_kernel, queries, 4)
    yield Case("attention dq", attention.query_gradient_kernel, queries, 4)
    yield Case("attention dk, dv", attention.key_value_gradient_kernel, keys, 4)


def _cross_scan(side: int, channels: int, rank: int, half: str) -> Iterator[Case]:
    from tfanet.ops import cross_selective_scan_triton as cross

    tag = f"{side} x {side} x {channels}"
    small = half != "fp32"
    sizes = cross.constants(side, side, channels, rank, 1, half=small)
    wide, narrow = cross.channel_blocks(channels, half=small)
    yield Case(f"2-D scan chunks {tag}", cross.chunk_kernel, sizes | {"BD": wide}, 2)
    for columns in (0, 1):
        constants = sizes | {"BD": narrow, "COLUMNS": columns}
        order = ("rows", "columns")[columns]
        yield Case(f"2-D scan {order} {tag}", cross.merge_kernel, constants, 1)
    constants = {"BC": cross.start_block(side * side), "BM": cross.START_CHANNELS}
    yield Case(f"2-D scan starts {tag}", cross.start_kernel, constants, 4)


def main() -> None:
    """Print the table."""
    import triton

    sys.stdout.write(f"Triton {triton.__version__}, activations FP16. Registers and bytes spilled a thread, ")
    sys.stdout.write("bytes of shared and of scratch memory a block\n")
    header = ("kernel", "sm", "warps", "registers", "spilled", "shared", "scratch")
    rows: list[tuple[str, ...]] = [header]
    for case in cases():
        for capability in CAPABILITIES:
            made = build(case, capability)
            figures = (
                capability,
                case.num_warps,
                made.registers,
                made.spill_stores,
                made.shared,
                made.scratch,
            )
            rows.append((case.name, *map(str, figures)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


if __name__ == "__main__":
    main()
