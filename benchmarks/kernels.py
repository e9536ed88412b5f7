"""Registers, spills and shared memory of every Triton kernel on GPUs that need not be here.

`python benchmarks/kernels.py` compiles the kernels of `tfanet.ops` as the plugins do (`tfanet_plugins.ptx`),
at the sizes of preset `base`, for every architecture in `CAPABILITIES`, and prints what ptxas reports.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from report import Table

from tfanet.console import new_app, run, say
from tfanet.errors import UserError

CAPABILITIES = ("8.0", "8.9", "9.0", "12.0")
"""A100, RTX 40, H100 and H200, RTX 50."""
STAGES = ((120, 256, 8), (60, 512, 16), (30, 1024, 32), (15, 2048, 64))
"""Side of the map, channels and rank of dt in the four stages of preset `base`."""
HALF = {
    "p_u", "p_delta", "p_B", "p_C", "p_du", "p_ddelta", "p_x", "p_z", "p_p", "p_W",
    "p_q", "p_k", "p_v", "p_out", "p_dout", "p_dq", "p_dk", "p_dv",
}  # fmt: skip
"""Kernel arguments in the dtype of the activations; other pointers are FP32, other arguments int32."""

KINDS = ("spill stores", "spill loads", "smem")
"""What ptxas counts in bytes."""


class Case(NamedTuple):
    """A kernel at the sizes of one call: its constexpr arguments and its warps."""

    name: str
    kernel: Any
    """A `triton.JITFunction`."""
    constants: Mapping[str, Any]
    num_warps: int


class Build(NamedTuple):
    """A kernel compiled for one architecture. Sizes in bytes: spills a thread, shared memory a block."""

    ptx: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int
    """Static and dynamic."""


def build(case: Case, capability: str, *, half: str = "fp16") -> Build:
    """Compile `case` with activations of type `half` (`fp16`, `bf16` or `fp32`) for GPUs of `capability`.

    Pointers are multiples of 16 bytes, as PyTorch and TensorRT allocate them. Raises `UserError` under
    Triton's interpreter, which has no compiler, and `VerificationError` for a kernel that a plugin could not
    launch.
    """
    from triton import knobs

    from tfanet_plugins.ptx import compile_ptx

    arguments = getattr(case.kernel, "arg_names", None)
    if arguments is None or knobs.runtime.interpret:
        raise UserError("kernels cannot be compiled under Triton's interpreter; unset TRITON_INTERPRET")
    pointers = {n: f"*{half}" if n in HALF else "*fp32" for n in arguments if n.startswith("p_")}
    types = {name: pointers.get(name, "i32") for name in arguments if name not in case.constants}
    made = compile_ptx(
        case.kernel, types, case.constants,
        aligned=list(pointers), capability=capability, num_warps=case.num_warps,
    )  # fmt: skip
    report = assemble(made.text, capability)
    patterns = (r"Used (\d+) registers", *(rf"(\d+) bytes {kind}" for kind in KINDS))
    registers, stores, loads, static = (int(m[1]) if (m := re.search(p, report)) else 0 for p in patterns)
    return Build(made.text, registers, stores, loads, static + made.shared)


def assemble(ptx: str, capability: str) -> str:
    """What `ptxas -v` reports about `ptx`."""
    from triton import knobs

    target = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    assert target is not None
    tool = knobs.nvidia.ptxas_blackwell if float(capability) >= 9 else knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [tool.path, "-v", f"--gpu-name={target[1]}", source, "-o", source.with_suffix(".cubin")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


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
    chunk_block, merge_block = cross.channel_blocks(channels, half=small)
    yield Case(f"2-D scan chunks {tag}", cross.chunk_kernel, sizes | {"BD": chunk_block}, cross.CHUNK_WARPS)
    for columns, order in enumerate(("rows", "columns")):
        constants = sizes | {"BD": merge_block, "COLUMNS": columns}
        yield Case(f"2-D scan {order} {tag}", cross.merge_kernel, constants, cross.MERGE_WARPS)
    constants = {"BC": cross.start_block(side * side), "BM": cross.START_CHANNELS}
    yield Case(f"2-D scan starts {tag}", cross.start_kernel, constants, 4)


app = new_app("Registers, spills and shared memory of every Triton kernel; no GPU needed.")


@app.command()
def kernels() -> None:
    """Compile every Triton kernel for four compute capabilities and print a table."""
    import triton

    rows = []
    for case in cases():
        for capability in CAPABILITIES:
            made = build(case, capability)
            values = (case.num_warps, made.registers, made.spill_stores, made.shared)
            rows.append((case.name, capability, *map(str, values)))
    say(f"Triton {triton.__version__}, activations FP16")
    columns = ("kernel", "capability", "warps", "registers", "spilled B", "shared B")
    Table("Registers and spills a thread, shared memory a block", columns, rows).show()


if __name__ == "__main__":
    run(app)
