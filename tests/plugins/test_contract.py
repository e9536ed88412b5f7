"""The plugins against NVIDIA's own plugin layer: registration, shapes, types, launch, kernel; no engine.

What TensorRT's builder asks a plugin, in its order and through its virtual tables, is asked here by a
stand-in (`stand_in.cpp`); everything between it and our functions is NVIDIA's code.
"""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
from cross_scan_parts import PARTS
from layers import attention, cross_scan, scaled_square, scan

from tfanet_plugins import PLUGINS
from tfanet_plugins.ptx import MAX_SHARED
from tfanet_plugins.target import PTX_VERSIONS

NEWEST = "11.4.0.106"
VERSIONS = [
    NEWEST,
    "10.16.1.11",
    *(
        pytest.param(version, marks=pytest.mark.slow)
        for version in ("10.9.0.34", "10.13.3.9", "10.15.1.29", "11.0.0.114", "11.2.1.2")
    ),
]
LAYERS = {
    "third op": scaled_square("HALF"),
    "scan, VMamba-B stage 1, half": scan("HALF", 4, 256, 1, 14400),
    "scan, tiny, single, 2 states": scan("FLOAT", 4, 24, 2, 225),
    "attention, words ask, half": attention("HALF", 9, 16, 17, 14400),
    "attention, pixels ask, single": attention("FLOAT", 2, 24, 576, 17, gamma="FLOAT"),
    **{f"{name}, stage 1, half": cross_scan(name, "HALF", 120, 120, 256, 8, 1) for name in PARTS},
    **{f"{name}, tiny, single": cross_scan(name, "FLOAT", 7, 9, 24, 2, 2, "HALF") for name in PARTS},
}
GPUS = ("8.0", "9.0", "12.0")
ON_GPUS = {f"third op, {capability}": scaled_square("HALF", capability=capability) for capability in GPUS}
ALL = LAYERS | ON_GPUS

Layer = dict[str, Any]


@pytest.fixture(scope="module", params=VERSIONS)
def answer(request, ask_tensorrt) -> dict[str, Any]:
    """What this version of the bindings says to all of `ALL`."""
    said = ask_tensorrt(request.param, {"modules": ["scaled_square_plugin"], "layers": list(ALL.values())})
    assert said["version"] in request.param
    assert [item["failed"] for item in said["layers"] if "failed" in item] == [], said["output"]
    return said | {"layers": dict(zip(ALL, said["layers"], strict=True))}


@pytest.fixture(params=ALL)
def asked(request) -> str:
    return request.param


@pytest.fixture
def said(asked, answer) -> Layer:
    return answer["layers"][asked]


def parameters(code: str) -> list[str]:
    """Types of the kernel's parameters."""
    (text,) = re.findall(r"\.entry \w+\(([^)]*)\)", code)
    return re.findall(r"\.param (\.\w+)", text)


def test_the_registry_has_every_plugin(answer):
    assert set(answer["operations"]) == set(PLUGINS)
    assert set(answer["creators"]) == {*PLUGINS, "ScaledSquare"}
    assert {creator["version"] for creator in answer["creators"].values()} == {"1"}


def test_no_plugin_has_attributes(answer):
    """Bindings before 11.2 cannot read a scalar attribute with NumPy 2.4; constants are compiled in."""
    assert [name for name, creator in answer["creators"].items() if creator["attributes"]] == []


def outputs_of(asked: str) -> list[str]:
    """Types of the layer's outputs."""
    return ALL[asked]["types"][len(ALL[asked]["inputs"]) :]


def test_outputs_have_the_promised_types_and_sizes(asked, said):
    """The first input's, but for the chunks of a map."""
    like, types = said["tensors"][0], outputs_of(asked)
    if ALL[asked]["name"] == "CrossScanChunks":
        (_, height, width, dim), (_, states) = (said["tensors"][i]["sizes"] for i in (0, 3))
        like = {
            key: [batch, 4, -(-height * width // 32), states, dim]
            for key, batch in {"sizes": -1, "min": 1, "opt": 1, "max": 8}.items()
        }
    assert said["tensors"][-len(types) :] == [like | {"type": name} for name in types]
    assert like["sizes"][0] == -1


def test_every_combination_is_linear_and_changes_activations_only(asked, said):
    types = ALL[asked]["types"]
    allowed = set()
    for activation in ("HALF", "FLOAT"):
        allowed.add(tuple(OTHER_TYPES[ALL[asked]["name"]](types, activation)))
    found = {tuple(row) for row, _ in said["combinations"]}
    assert found == allowed
    assert {name for _, formats in said["combinations"] for name in formats} == {"LINEAR"}


OTHER_TYPES = {
    "ScaledSquare": lambda t, x: [x, t[1], x],
    "SelectiveScan": lambda t, x: [x, x, t[2], x, x, *t[5:7], "FLOAT"],
    "LinearCrossAttention": lambda t, x: [x, x, x, t[3], x],
    "CrossScanStarts": lambda t, x: ["FLOAT"] * 3,
    **{f"CrossScan{part}": lambda t, x: [x, x, x, *t[3:]] for part in ("Chunks", "Rows", "Columns")},
}


def test_tactics_are_positive_and_each_has_a_kernel(said):
    assert said["tactics"] == [kernel["tactic"] for kernel in said["kernels"]]
    assert min(said["tactics"]) >= 1


def test_the_kernel_takes_inputs_scalars_outputs_and_nothing_else(asked, said):
    for kernel in said["kernels"]:
        assert f".visible .entry {kernel['kernel']}(" in kernel["code"]
        inputs, scalars = len(ALL[asked]["inputs"]), len(kernel["cases"][0]["scalars"])
        outputs = len(outputs_of(asked))
        assert parameters(kernel["code"]) == [".u64"] * inputs + [".u32"] * scalars + [".u64"] * outputs


def test_blocks_are_as_large_as_the_kernel_was_compiled_for(said):
    for kernel in said["kernels"]:
        (threads,) = re.findall(r"\.reqntid (\d+)", kernel["code"])
        for case in kernel["cases"]:
            assert [case["block_x"], case["block_y"], case["block_z"]] == [int(threads), 1, 1]
            assert 0 <= case["shared_mem"] <= MAX_SHARED


def test_the_grid_grows_with_the_batch_and_fits_a_gpu(said):
    for kernel in said["kernels"]:
        one, eight = ([case[f"grid_{axis}"] for axis in "xyz"] for case in kernel["cases"])
        assert min(one) >= 1
        assert one[0] * one[1] * one[2] <= eight[0] * eight[1] * eight[2] <= 8 * one[0] * one[1] * one[2]
        assert eight[0] < 2**31
        assert max(eight[1:]) < 2**16


SCALARS = {
    "third op": [[150], [1200]],
    "scan, VMamba-B stage 1, half": [[256, 14400]] * 2,
    "scan, tiny, single, 2 states": [[24, 225]] * 2,
    "CrossScanChunks, stage 1, half": [[]] * 2,
    "CrossScanStarts, stage 1, half": [[450, 256]] * 2,
    "CrossScanStarts, tiny, single": [[2, 48]] * 2,
    "CrossScanRows, stage 1, half": [[]] * 2,
    "CrossScanColumns, stage 1, half": [[]] * 2,
}


@pytest.mark.parametrize("name", SCALARS)
def test_scalars_follow_the_sizes(answer, name):
    for kernel in answer["layers"][name]["kernels"]:
        assert [case["scalars"] for case in kernel["cases"]] == SCALARS[name]


def test_the_code_is_for_the_chosen_gpu_and_for_old_drivers(asked, said):
    capability = ALL[asked]["capability"]
    for kernel in said["kernels"]:
        version = PTX_VERSIONS[capability]
        assert f".version {version // 10}.{version % 10}\n" in kernel["code"]
        assert re.search(rf"^\.target sm_{capability.replace('.', '')}a?$", kernel["code"], re.MULTILINE)


def test_the_code_tells_nothing_of_this_machine(said):
    for kernel in said["kernels"]:
        assert not re.search(r"\.file|\.loc|\.debug|\.py", kernel["code"])


@pytest.mark.parametrize("name", ALL)
def test_the_code_assembles(ask_tensorrt, answer, name, tmp_path):
    """`ptxas` takes the text that TensorRT gets, without the parameters that were cut out."""
    from triton import knobs

    for kernel in answer["layers"][name]["kernels"][:1]:
        (tmp_path / "kernel.ptx").write_text(kernel["code"])
        (target,) = re.findall(r"^\.target (\w+)", kernel["code"], re.MULTILINE)
        tool = knobs.nvidia.ptxas if int(target[3:].rstrip("a")) < 90 else knobs.nvidia.ptxas_blackwell
        command = [tool.path, "-arch", target, tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


NUMBERS = {
    "third op, half": scaled_square("HALF", (3, 50)),
    "third op, single": scaled_square("FLOAT", (700,), scale="HALF"),
    **{
        f"scan of {length}, {states} states, {groups} groups of {dim}, {x.lower()}": scan(
            x, groups, dim, states, length, batches=batches
        )
        for x, groups, dim, states, length, batches in [
            ("FLOAT", 4, 3, 1, 1, (2,)),
            ("HALF", 1, 5, 2, 17, (3,)),
            ("HALF", 4, 8, 1, 63, (1, 2)),
            ("FLOAT", 2, 3, 2, 225, (1,)),
        ]
    },
    "attention, 9 words ask 50 pixels, half": attention("HALF", 3, 16, 9, 50, batches=(2,)),
    "attention, 50 pixels ask 9 words, single": attention("FLOAT", 3, 24, 50, 9, batches=(1, 2)),
    **{
        f"{name} of {height} x {width} x {dim}, rank {rank}, {states} states, {x.lower()}": cross_scan(
            name, x, height, width, dim, rank, states, batches=batches
        )
        for x, height, width, dim, rank, states, batches in [
            ("HALF", 5, 9, 3, 2, 2, (2,)),
            ("FLOAT", 6, 7, 20, 18, 1, (1,)),
        ]
        for name in PARTS
    },
}
TOLERANCE = {"FLOAT": 1e-5, "HALF": 1e-3}


@pytest.fixture(scope="module")
def numbers(ask_tensorrt) -> dict[str, Layer]:
    layers = list(NUMBERS.values())
    said = ask_tensorrt(NEWEST, {"modules": ["scaled_square_plugin"], "layers": layers}, interpreted=True)
    assert [item["failed"] for item in said["layers"] if "failed" in item] == [], said["output"]
    return dict(zip(NUMBERS, said["layers"], strict=True))


@pytest.mark.parametrize("name", NUMBERS)
def test_the_kernel_in_this_grid_with_these_scalars_is_the_operation(numbers, name):
    """Every tactic's launch, in Triton's interpreter, on poisoned output, against the loop."""
    errors = [error for kernel in numbers[name]["kernels"] for error in kernel["errors"]]
    assert errors
    assert all(error <= TOLERANCE[NUMBERS[name]["types"][-1]] for error in errors), errors


@pytest.mark.parametrize("name", NUMBERS)
def test_the_form_for_run_time_is_the_operation(numbers, name):
    assert numbers[name]["jit_error"] <= TOLERANCE[NUMBERS[name]["types"][-1]]


DYNAMIC_LENGTH = scan("HALF", 4, 8, 1, 63)
for tensor in DYNAMIC_LENGTH["inputs"]:
    tensor["max"] = [126 if size == 63 else size for size in tensor["max"]]
HALVES_AND_SINGLES = cross_scan("CrossScanRows", "HALF", 7, 9, 3, 1, 1)
HALVES_AND_SINGLES["inputs"][2]["type"] = HALVES_AND_SINGLES["types"][2] = "FLOAT"
FAILING = {
    "a kernel with other arguments": (
        scaled_square("HALF") | {"name": "Broken"},
        "tactic 0 gives no kernel",
        "VerificationError: kernel scaled_square_kernel takes p_x, p_scale, count, p_y; "
        "the plugin has 2 inputs, 0 scalars and 1 outputs",
    ),
    "a size that must be fixed": (
        DYNAMIC_LENGTH,
        "no combination of types",
        "UserError: axis 2 of a plugin's input must have a fixed size",
    ),
    "activations in BF16": (
        scaled_square("BF16"),
        "ScaledSquare does not take BF16, FLOAT, BF16",
        "",
    ),
    "halves beside singles": (
        HALVES_AND_SINGLES,
        "CrossScanRows does not take HALF, HALF, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT",
        "",
    ),
    "a map too large for its offsets": (
        cross_scan("CrossScanRows", "HALF", 4096, 4096, 128, 1, 1),
        "tactic 1 gives no kernel",
        "UserError: the 2-D scan's plugins take maps of up to 2147483647 values a picture",
    ),
    "a parameter in BF16": (
        scaled_square("HALF", scale="BF16"),
        "no combination of types",
        "UserError: plugins take FP32 and FP16, not DataType.BF16",
    ),
    "unknown plugin": (
        scaled_square("HALF") | {"name": "Missing"},
        "tfanet::Missing cannot be created",
        "",
    ),
    "an input too many": (
        scaled_square("HALF") | {"inputs": 2 * scaled_square("HALF")["inputs"]},
        "tfanet::ScaledSquare cannot be created",
        r"takes 2 positional arguments but 4 were given",
    ),
}


@pytest.fixture(scope="module")
def failures(ask_tensorrt) -> dict[str, Any]:
    layers = [layer for layer, _, _ in FAILING.values()]
    return ask_tensorrt(NEWEST, {"modules": ["scaled_square_plugin", "broken_plugin"], "layers": layers})


@pytest.mark.parametrize("name", FAILING)
def test_what_fails_is_seen(failures, name):
    """That the tests above can fail: the stand-in ends where a plugin or the bindings object."""
    _, failed, printed = FAILING[name]
    assert failures["layers"][list(FAILING).index(name)]["failed"] == failed
    assert re.search(printed, failures["output"])
