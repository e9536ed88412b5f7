"""The table of FP32 islands agrees with the half model's weights, with its results and with the code."""

from __future__ import annotations

import ast
import importlib
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import tfanet
from tfanet.config import VARIANTS
from tfanet.fp16 import ISLANDS, fp32_tensors
from tfanet_export.deploy import deployment_model
from tfanet_export.trace import example_inputs

FOLDER = Path(tfanet.__file__).parent
MODULES = {where: island for island in ISLANDS for where in island.where if ".ops." not in where}
OPERATIONS = {where for island in ISLANDS for where in island.where if ".ops." in where}


def path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@pytest.fixture(params=["e", "a"], ids=["full", "baseline"])
def half(request):
    torch.manual_seed(0)
    model = tfanet.build_model("tiny", **VARIANTS[request.param])
    return deployment_model(model, fp16=True)


def test_every_row_names_a_module_or_an_operation():
    for where in (*MODULES, *OPERATIONS):
        module, _, name = where.rpartition(".")
        assert hasattr(importlib.import_module(module), name), where


def test_kept_names_exist(half):
    classes = {path_of(type(module)): module for module in half.modules()}
    for where, island in MODULES.items():
        if where in classes:
            assert all(hasattr(classes[where], name) for name in island.keeps), where


def test_all_other_weights_are_fp16(half):
    tensors = {**dict(half.named_parameters()), **dict(half.named_buffers())}
    kept = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert kept == {name for name, _ in fp32_tensors(half)}
    assert {tensors[name].dtype for name in tensors.keys() - kept} == {torch.float16}
    expected = {name for island in ISLANDS for name in island.keeps}
    assert {part for name in kept for part in name.split(".")} >= expected
    assert all(expected.intersection(name.split(".")) for name in kept)


class Fp32Results(TorchDispatchMode):
    """Collects the islands, or else the paths, of the modules in which an operation gives FP32."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.islands: set[str] = set()
        self.stack: list[str] = []
        self.named = dict(model.named_modules())
        for name, module in self.named.items():
            module.register_forward_pre_hook(partial(self.enter, name))
            module.register_forward_hook(self.leave)

    def enter(self, name: str, *_: object) -> None:
        self.stack.append(name)

    def leave(self, *_: object) -> None:
        self.stack.pop()

    def island_of(self, name: str) -> str:
        parent, _, last = name.rpartition(".")
        module, owner = path_of(type(self.named[name])), path_of(type(self.named[parent]))
        if module in MODULES:
            return module
        return owner if owner in MODULES and last in MODULES[owner].keeps else name

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        if any(x.dtype == torch.float32 for x in tensors[:1]):
            self.islands.add(self.island_of(self.stack[-1]))
        return result


def test_only_islands_compute_in_fp32(half):
    image, tokens = example_inputs(half)
    mode = Fp32Results(half)
    with torch.inference_mode(), mode:
        assert half(image, tokens).dtype == torch.float32
    present = {path_of(type(module)) for module in half.modules()}
    assert mode.islands == MODULES.keys() & present


def calls(path: Path) -> set[str]:
    """Names of the functions and methods that the file calls."""
    nodes = (node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
    return {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in nodes}


def wide_dtypes(path: Path) -> set[str]:
    """`torch.float32` and other names of FP32 and FP64 in the file."""
    nodes = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute))
    names = {f"torch.{name}" for name in ("float32", "float", "float64", "double")}
    return {ast.unparse(node) for node in nodes} & names


def test_casts_are_where_the_table_says():
    """Modules cast to FP32 by `to_fp32` only; the operations listed, and no others, use `accum_dtype`."""
    modules = ("baseline", "cfsm", "layers", "mlam", "model", "text", "transformer", "vmamba", "wfdm")
    called = {name: calls(FOLDER / f"{name}.py") for name in modules}
    assert [name for name, names in called.items() if names & {"float", "double"}] == []
    assert [name for name in modules if wide_dtypes(FOLDER / f"{name}.py")] == []
    casting = {name for name, names in called.items() if "to_fp32" in names}
    assert casting == {where.split(".")[1] for where in MODULES} - {"baseline"}  # by wfdm's function
    using = {path.stem for path in (FOLDER / "ops").glob("*.py") if "accum_dtype" in calls(path)}
    assert using == {where.rpartition(".")[2] for where in OPERATIONS}
