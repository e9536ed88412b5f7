"""What the package says where there is no TensorRT, and that it needs none until plugins are asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tfanet.errors import UserError
from tfanet_plugins import PLUGINS, register_all, use_plugin_bodies
from tfanet_plugins.target import choose_capability, chosen_capability


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_every_operation_of_the_domain_reaches_a_plugin(target):
    """Its own, or those that its body for TensorRT is made of."""
    from onnx import ModelProto

    from tfanet_export.functions import function_protos

    model = ModelProto(functions=function_protos(target, states=1, longest=16_384))
    use_plugin_bodies(model)
    for function in model.functions:
        inner = {node.op_type for node in function.node if node.domain == "tfanet"}
        assert function.name in PLUGINS or (inner and inner <= set(PLUGINS)), function.name


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, r'plugins need the full TensorRT \(.*\); install it with: pip install "tfanet\[tensorrt\]"'),
        (SimpleNamespace(__version__="10.8.0.43"), "plugins need TensorRT 10.9 or later, not 10.8.0.43"),
        (SimpleNamespace(__version__="9.3.0"), "plugins need TensorRT 10.9 or later, not 9.3.0"),
    ],
    ids=["missing", "10.8", "9.3"],
)
def test_no_or_old_tensorrt_is_one_line(monkeypatch, module, message):
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(UserError, match=f"^{message}$"):
        register_all()


def test_an_unknown_gpu_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.0.106"))
    with pytest.raises(UserError, match=r"^no kernels for compute capability 7\.5; known: 8\.0, [^\n]*$"):
        register_all("7.5")


@pytest.fixture
def no_choice():
    choose_capability(None)
    yield
    choose_capability(None)


@pytest.mark.usefixtures("no_choice")
def test_the_gpu_is_the_chosen_one_else_this_machine_s(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    assert chosen_capability() == "12.0"
    choose_capability("8.9")
    assert chosen_capability() == "8.9"
    choose_capability(None)
    assert chosen_capability() == "12.0"


@pytest.mark.usefixtures("no_choice")
def test_an_unknown_gpu_of_this_machine_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UserError, match=r"^no kernels for compute capability 7\.5; known: 8\.0, [^\n]*$"):
        chosen_capability()


@pytest.mark.usefixtures("no_choice")
def test_no_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^no GPU here: name the one .*, register_all\('8.9'\)$"):
        chosen_capability()


def test_the_package_is_light():
    code = (
        "import sys, json; from tfanet_plugins import PLUGINS, mark_plugin_nodes, register_all;"
        "print(json.dumps([name for name in ('torch', 'triton', 'onnx', 'tensorrt') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
