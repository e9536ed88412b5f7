"""PTX that TensorRT can launch: exactly the arguments that it gives, nothing that it does not have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tfanet.errors import VerificationError
from tfanet_plugins.ptx import MAX_SHARED, check_launch, without_hidden_arguments

POINTER = ".param .u64 .ptr .global .align 1"


def kernel(*parameters: str, body: str = "ret;", name: str = "scan") -> str:
    joined = ",\n\t".join(parameters)
    return f".visible .entry {name}(\n\t{joined}\n)\n.reqntid 128\n{{\n\t{body}\n}}\n"


SCAN = (f"{POINTER} scan_param_0", ".param .u32 scan_param_1", f"{POINTER} scan_param_2")
HIDDEN = (f"{POINTER} scan_param_3", f"{POINTER} scan_param_4")
TYPES = ["*fp16", "i32", "*fp32"]


@pytest.mark.parametrize("hidden", [(), HIDDEN[:1], HIDDEN], ids=["none", "one", "two"])
def test_hidden_arguments_go(hidden):
    assert without_hidden_arguments(kernel(*SCAN, *hidden), TYPES) == kernel(*SCAN)


def test_the_rest_of_the_text_stays():
    text = ".version 8.0\n" + kernel(*SCAN, *HIDDEN, body="ld.param.b64 %rd1, [scan_param_0];") + "// end\n"
    body = "ld.param.b64 %rd1, [scan_param_0];"
    assert without_hidden_arguments(text, TYPES) == ".version 8.0\n" + kernel(*SCAN, body=body) + "// end\n"


def test_parameter_10_is_not_parameter_1():
    parameters = [f"{POINTER} scan_param_{i}" for i in range(12)]
    text = kernel(*parameters, body="ld.param.b64 %rd1, [scan_param_10];")
    with pytest.raises(VerificationError, match="scan reads scan_param_10; TensorRT does not give that"):
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
def test_what_does_not_fit_is_refused(text, types, message):
    with pytest.raises(VerificationError, match=message):
        without_hidden_arguments(text, types)


FITTING = {
    "name": "scan",
    "shared": MAX_SHARED,
    "num_ctas": 1,
    "global_scratch_size": 0,
    "profile_scratch_size": 0,
    "launch_cooperative_grid": False,
    "launch_pdl": False,
}


def test_a_plain_kernel_is_taken():
    check_launch(SimpleNamespace(**FITTING))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared": MAX_SHARED + 1}, "scan needs 49153 B of shared memory; a plugin has 49152"),
        ({"num_ctas": 2}, "scan needs clusters of 2 blocks"),
        ({"global_scratch_size": 64}, "scan needs global_scratch_size"),
        ({"profile_scratch_size": 64}, "scan needs profile_scratch_size"),
        ({"launch_cooperative_grid": True}, "scan needs launch_cooperative_grid"),
        ({"launch_pdl": True}, "scan needs launch_pdl"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_plugin_cannot_launch_is_refused(change, message):
    with pytest.raises(VerificationError, match=message):
        check_launch(SimpleNamespace(**FITTING | change))
