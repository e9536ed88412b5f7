"""The plugins under NVIDIA's plugin layer: registration, shapes, types, launch and kernel, without an engine.

A fake builder calls the plugins through TensorRT's C++ interfaces, in the order of TensorRT's builder;
everything between it and the plugin functions is NVIDIA's code.
"""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
from cross_scan_parts import PARTS
from layers import attention, cross_scan, scaled_square, scan

from tfanet_plugins import PLUGINS
from tfanet_plugins.ptx import MAX_SHARED, PTX_VERSIONS

pytestmark = pytest.mark.integration

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
    "attention, words query, half": attention("HALF", 9, 16, 17, 14400),
    "attention, pixels query, single": attention("FLOAT", 2, 24, 576, 17, gamma="FLOAT"),
    **{f"{name}, stage 1, half": cross_scan(name, "HALF", 120, 120, 256, 8, 1) for name in PARTS},
    **{f"{name}, tiny, single": cross_scan(name, "FLOAT", 7, 9, 24, 2, 2, "HALF") for name in PARTS},
}
GPUS = ("8.0", "9.0", "12.0")
ON_GPUS = {f"third op, {capability}": scaled_square("HALF", capability=capability) for capability in GPUS}
ALL = LAYERS | ON_GPUS

Layer = dict[str, Any]


@pytest.fixture(scope="module", params=VERSIONS)
def reply(request, ask_tensorrt) -> dict[str, Any]:
    """The reply of this version of the bindings to all of `ALL`."""
    reply = ask_tensorrt(request.param, {"modules": ["scaled_square_plugin"], "layers": list(ALL.values())})
    assert reply["version"] in request.param
    assert [item["failed"] for item in reply["layers"] if "failed" in item] == [], reply["output"]
    return reply | {"layers": dict(zip(ALL, reply["layers"], strict=True))}


@pytest.fixture(params=ALL)
def name(request) -> str:
    """Name of a layer of `ALL`."""
    return request.param


@pytest.fixture
def layer(name, reply) -> Layer:
    """What the bindings reported for the layer `name`."""
    return reply["layers"][name]


def parameters(code: str) -> list[str]:
    """Types of the kernel's parameters."""
    (text,) = re.findall(r"\.entry \w+\(([^)]*)\)", code)
    return re.findall(r"\.param (\.\w+)", text)


def test_registry_has_every_plugin(reply):
    assert set(reply["operations"]) == set(PLUGINS)
    assert set(reply["creators"]) == {*PLUGINS, "ScaledSquare"}
    assert {creator["version"] for creator in reply["creators"].values()} == {"1"}


def test_no_plugin_has_attributes(reply):
    """Bindings before 11.2 cannot read a scalar attribute with NumPy 2.4; constants are compiled in."""
    assert [name for name, creator in reply["creators"].items() if creator["attributes"]] == []


def outputs_of(name: str) -> list[str]:
    """Types of the layer's outputs."""
    return ALL[name]["types"][len(ALL[name]["inputs"]) :]


def test_outputs_have_the_declared_types_and_sizes(name, layer):
    """Those of the first input, except for the chunks of a map."""
    like, types = layer["tensors"][0], outputs_of(name)
    if ALL[name]["name"] == "CrossScanChunks":
        (_, height, width, dim), (_, states) = (layer["tensors"][i]["sizes"] for i in (0, 3))
        like = {
            key: [batch, 4, -(-height * width // 32), states, dim]
            for key, batch in {"sizes": -1, "min": 1, "opt": 1, "max": 8}.items()
        }
    assert layer["tensors"][-len(types) :] == [like | {"type": name} for name in types]
    assert like["sizes"][0] == -1


def test_every_combination_is_linear_and_changes_activations_only(name, layer):
    types = ALL[name]["types"]
    allowed = set()
    for activation in ("HALF", "FLOAT"):
        allowed.add(tuple(OTHER_TYPES[ALL[name]["name"]](types, activation)))
    assert {tuple(row) for row, _ in layer["combinations"]} == allowed
    assert {name for _, formats in layer["combinations"] for name in formats} == {"LINEAR"}


OTHER_TYPES = {
    "ScaledSquare": lambda t, x: [x, t[1], x],
    "SelectiveScan": lambda t, x: [x, x, t[2], x, x, *t[5:7], "FLOAT"],
    "LinearCrossAttention": lambda t, x: [x, x, x, t[3], x],
    "CrossScanStarts": lambda t, x: ["FLOAT"] * 3,
    **{f"CrossScan{part}": lambda t, x: [x, x, x, *t[3:]] for part in ("Chunks", "Rows", "Columns")},
}


def test_tactics_are_positive_and_each_has_a_kernel(layer):
    assert layer["tactics"] == [kernel["tactic"] for kernel in layer["kernels"]]
    assert min(layer["tactics"]) >= 1


def test_kernel_parameters_are_inputs_scalars_outputs(name, layer):
    for kernel in layer["kernels"]:
        assert f".visible .entry {kernel['kernel']}(" in kernel["code"]
        inputs, scalars = len(ALL[name]["inputs"]), len(kernel["cases"][0]["scalars"])
        outputs = len(outputs_of(name))
        assert parameters(kernel["code"]) == [".u64"] * inputs + [".u32"] * scalars + [".u64"] * outputs


def test_block_size_is_that_of_the_compiled_kernel(layer):
    for kernel in layer["kernels"]:
        (threads,) = re.findall(r"\.reqntid (\d+)", kernel["code"])
        for case in kernel["cases"]:
            assert [case["block_x"], case["block_y"], case["block_z"]] == [int(threads), 1, 1]
            assert 0 <= case["shared_mem"] <= MAX_SHARED


def test_grid_grows_with_the_batch_and_fits_a_gpu(layer):
    for kernel in layer["kernels"]:
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
def test_scalars_follow_the_sizes(reply, name):
    for kernel in reply["layers"][name]["kernels"]:
        assert [case["scalars"] for case in kernel["cases"]] == SCALARS[name]


def test_ptx_is_for_the_chosen_gpu_and_old_drivers(name, layer):
    capability = ALL[name]["capability"]
    for kernel in layer["kernels"]:
        version = PTX_VERSIONS[capability]
        assert f".version {version // 10}.{version % 10}\n" in kernel["code"]
        assert re.search(rf"^\.target sm_{capability.replace('.', '')}a?$", kernel["code"], re.MULTILINE)


def test_ptx_has_no_path_of_this_machine(layer):
    for kernel in layer["kernels"]:
        assert not re.search(r"\.file|\.loc|\.debug|\.py", kernel["code"])


@pytest.mark.parametrize("name", ALL)
def test_ptx_assembles(ask_tensorrt, reply, name, tmp_path):
    """`ptxas` accepts the text that TensorRT gets, without the hidden parameters."""
    from triton import knobs

    for kernel in reply["layers"][name]["kernels"][:1]:
        (tmp_path / "kernel.ptx").write_text(kernel["code"])
        (target,) = re.findall(r"^\.target (\w+)", kernel["code"], re.MULTILINE)
        tool = knobs.nvidia.ptxas if int(target[3:].rstrip("a")) < 90 else knobs.nvidia.ptxas_blackwell
        command = [tool.path, "-arch", target, tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


NUMERIC = {
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
    "attention, 9 words query 50 pixels, half": attention("HALF", 3, 16, 9, 50, batches=(2,)),
    "attention, 50 pixels query 9 words, single": attention("FLOAT", 3, 24, 50, 9, batches=(1, 2)),
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
def numeric(ask_tensorrt) -> dict[str, Layer]:
    layers = list(NUMERIC.values())
    reply = ask_tensorrt(NEWEST, {"modules": ["scaled_square_plugin"], "layers": layers}, interpreted=True)
    assert [item["failed"] for item in reply["layers"] if "failed" in item] == [], reply["output"]
    return dict(zip(NUMERIC, reply["layers"], strict=True))


@pytest.mark.parametrize("name", NUMERIC)
def test_kernel_with_the_reported_launch_computes_the_operation(numeric, name):
    """Every tactic's launch in Triton's interpreter, on poisoned output memory, against the loop."""
    errors = [error for kernel in numeric[name]["kernels"] for error in kernel["errors"]]
    assert errors
    assert all(error <= TOLERANCE[NUMERIC[name]["types"][-1]] for error in errors), errors


@pytest.mark.parametrize("name", NUMERIC)
def test_jit_form_computes_the_operation(numeric, name):
    assert numeric[name]["jit_error"] <= TOLERANCE[NUMERIC[name]["types"][-1]]


DYNAMIC_LENGTH = scan("HALF", 4, 8, 1, 63)
for tensor in DYNAMIC_LENGTH["inputs"]:
    tensor["max"] = [126 if size == 63 else size for size in tensor["max"]]
MIXED_TYPES = cross_scan("CrossScanRows", "HALF", 7, 9, 3, 1, 1)
MIXED_TYPES["inputs"][2]["type"] = MIXED_TYPES["types"][2] = "FLOAT"
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
    "mixed FP16 and FP32 activations": (
        MIXED_TYPES,
        "CrossScanRows does not take HALF, HALF, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT",
        "",
    ),
    "a map too large for its offsets": (
        cross_scan("CrossScanRows", "HALF", 4096, 4096, 128, 1, 1),
        "tactic 1 gives no kernel",
        "UserError: the 2-D scan's plugins take maps of up to 2147483647 values per image",
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
    "too many inputs": (
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
def test_failures_are_reported(failures, name):
    """The tests above can fail: the fake builder stops where a plugin or the bindings reject something."""
    _, failed, printed = FAILING[name]
    assert failures["layers"][list(FAILING).index(name)]["failed"] == failed
    assert re.search(printed, failures["output"])
