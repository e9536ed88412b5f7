"""All Triton kernels compile for GPUs that are not here, within the limits of a plugin."""

from __future__ import annotations

import os
import re
from pathlib import Path

import kernels
import pytest

from tfanet import ops
from tfanet.errors import UserError

pytest.importorskip("triton")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
compiles = pytest.mark.skipif(interpreted, reason="Triton's interpreter has no compiler")

KERNELS = {
    "selective_scan": ("scan 14400 x 256", "scan 225 x 2048", "scan 900 x 1024, N = 16"),
    "selective_scan_starts": ("scan starts 14400 x 256",),
    "selective_scan_backward": ("scan backward 14400 x 256", "scan backward 900 x 1024, N = 16"),
    "linear_cross_attention": ("attention",),
    "products": ("attention products", "attention products of units"),
    "attend": ("attention of products",),
    "query_gradient": ("attention dq",),
    "key_value_gradient": ("attention dk, dv",),
    "chunk": ("2-D scan chunks 120 x 120 x 256",),
    "start": ("2-D scan starts 120 x 120 x 256",),
    "merge": ("2-D scan rows 15 x 15 x 2048", "2-D scan columns 120 x 120 x 256"),
}
"""Every kernel at the sizes, of all those in `cases`, that differ most."""
MAX_SHARED = 48 * 1024


@pytest.fixture(scope="module")
def cases():
    return {case.name: case for case in kernels.cases()}


def check(made, capability):
    """`build` itself raises where a kernel needs scratch memory."""
    number = capability.replace(".", "")
    assert re.search(rf"^\.target sm_{number}", made.ptx, re.MULTILINE)
    assert made.spill_stores == made.spill_loads == 0
    assert 16 <= made.registers <= 255
    assert made.shared < MAX_SHARED


def test_cases_cover_every_kernel(cases):
    kernel_of = {name: case.kernel.__name__.removesuffix("_kernel") for name, case in cases.items()}
    assert {name: kernel_of[name] for names in KERNELS.values() for name in names} == {
        name: kernel for kernel, names in KERNELS.items() for name in names
    }
    assert set(kernel_of.values()) == KERNELS.keys()
    files = Path(ops.__file__).parent.glob("*_triton.py")
    defined = {name for file in files for name in re.findall(r"^def (\w+)_kernel\(", file.read_text(), re.M)}
    assert defined == KERNELS.keys()


@compiles
@pytest.mark.parametrize("capability", kernels.CAPABILITIES)
@pytest.mark.parametrize("name", [name for names in KERNELS.values() for name in names])
def test_kernels_compile_for_every_architecture(name, capability, cases, record_property):
    made = kernels.build(cases[name], capability)
    record_property("registers", made.registers)
    record_property("shared", made.shared)
    check(made, capability)


@compiles
def test_loads_are_16_bytes_wide_where_lengths_allow(cases):
    """What the copy bandwidth needs: asynchronous copies and stores of 16 bytes."""
    ptx = kernels.build(cases["scan 14400 x 256"], "8.9").ptx
    assert re.search(r"cp\.async\.\w+\.shared\.global[^;]*, 0x10,", ptx)
    assert re.search(r"st\.global\.v4\.b32", ptx)


@compiles
@pytest.mark.parametrize("half", ["bf16", "fp32"])
def test_other_dtypes_of_activations(half):
    cases = {case.name: case for case in kernels.cases(half)}
    for name in ("scan 14400 x 256", "attention"):
        check(kernels.build(cases[name], "8.9", half=half), "8.9")


def test_compiling_under_the_interpreter_fails(monkeypatch):
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "interpret", True)
    with pytest.raises(UserError, match="unset TRITON_INTERPRET"):
        kernels.build(next(kernels.cases()), "8.9")
