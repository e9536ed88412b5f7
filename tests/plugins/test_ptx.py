"""PTX that TensorRT can launch: only the arguments it passes, nothing it does not support."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tfanet.errors import UserError, VerificationError
from tfanet_plugins.ptx import (
    MAX_SHARED,
    check_launch,
    choose_capability,
    chosen_capability,
    without_hidden_arguments,
)

POINTER = ".param .u64 .ptr .global .align 1"


def kernel(*parameters: str, body: str = "ret;", name: str = "scan") -> str:
    joined = ",\n\t".join(parameters)
    return f".visible .entry {name}(\n\t{joined}\n)\n.reqntid 128\n{{\n\t{body}\n}}\n"


SCAN = (f"{POINTER} scan_param_0", ".param .u32 scan_param_1", f"{POINTER} scan_param_2")
HIDDEN = (f"{POINTER} scan_param_3", f"{POINTER} scan_param_4")
TYPES = ["*fp16", "i32", "*fp32"]


@pytest.mark.parametrize("hidden", [(), HIDDEN[:1], HIDDEN], ids=["none", "one", "two"])
def test_hidden_arguments_are_removed(hidden):
    assert without_hidden_arguments(kernel(*SCAN, *hidden), TYPES) == kernel(*SCAN)


def test_rest_of_the_text_is_unchanged():
    text = ".version 8.0\n" + kernel(*SCAN, *HIDDEN, body="ld.param.b64 %rd1, [scan_param_0];") + "// end\n"
    body = "ld.param.b64 %rd1, [scan_param_0];"
    assert without_hidden_arguments(text, TYPES) == ".version 8.0\n" + kernel(*SCAN, body=body) + "// end\n"


def test_parameter_10_is_not_mistaken_for_parameter_1():
    parameters = [f"{POINTER} scan_param_{i}" for i in range(12)]
    text = kernel(*parameters, body="ld.param.b64 %rd1, [scan_param_10];")
    with pytest.raises(VerificationError, match="scan uses scan_param_10, which TensorRT does not pass"):
        without_hidden_arguments(text, ["*fp16"])
    assert "scan_param_1\n" in without_hidden_arguments(text.replace("_10]", "_0]"), ["*fp16"] * 2)


@pytest.mark.parametrize(
    ("text", "types", "message"),
    [
        (kernel(*SCAN), ["*fp16", "*fp32", "i32"], "scan takes .*, not \\*fp16, \\*fp32, i32"),
        (kernel(*SCAN[:2]), TYPES, "scan takes"),
        (kernel(*SCAN) + kernel(*SCAN, name="other"), TYPES, "2 kernels"),
        ("", TYPES, "0 kernels"),
    ],
    ids=["other order", "too few", "two kernels", "no kernel"],
)
def test_other_parameters_are_rejected(text, types, message):
    with pytest.raises(VerificationError, match=message):
        without_hidden_arguments(text, types)


SUPPORTED = {
    "name": "scan",
    "shared": MAX_SHARED,
    "num_ctas": 1,
    "global_scratch_size": 0,
    "profile_scratch_size": 0,
    "launch_cooperative_grid": False,
    "launch_pdl": False,
}


def test_plain_kernel_is_accepted():
    check_launch(SimpleNamespace(**SUPPORTED))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared": MAX_SHARED + 1}, "scan needs 49153 B of shared memory; plugins have 49152 B"),
        ({"num_ctas": 2}, "scan needs clusters of 2 blocks; plugins have none"),
        ({"global_scratch_size": 64}, "scan needs global_scratch_size"),
        ({"profile_scratch_size": 64}, "scan needs profile_scratch_size"),
        ({"launch_cooperative_grid": True}, "scan needs launch_cooperative_grid"),
        ({"launch_pdl": True}, "scan needs launch_pdl"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unsupported_launches_are_rejected(change, message):
    with pytest.raises(VerificationError, match=message):
        check_launch(SimpleNamespace(**SUPPORTED | change))


@pytest.fixture
def no_choice():
    choose_capability(None)
    yield
    choose_capability(None)


@pytest.mark.usefixtures("no_choice")
def test_capability_is_the_chosen_one_else_that_of_this_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    assert chosen_capability() == "12.0"
    choose_capability("8.9")
    assert chosen_capability() == "8.9"
    choose_capability(None)
    assert chosen_capability() == "12.0"


@pytest.mark.usefixtures("no_choice")
def test_unsupported_gpu_of_this_machine_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UserError, match=r"^unsupported compute capability 7\.5; supported: 8\.0, [^\n]*$"):
        chosen_capability()


@pytest.mark.usefixtures("no_choice")
def test_missing_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=r"^no GPU on this machine: give the compute capability, as in register_all\('8.9'\)$"
    ):
        chosen_capability()
