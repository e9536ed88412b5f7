"""The compiled kernel of the 2-D scan, in PyTorch and ONNX Runtime, compared with the reference loop."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from tfanet.ops import cross_selective_scan, native
from tfanet.ops.cross_selective_scan import cross_selective_scan_loop
from tfanet_engines import open_engine
from tfanet_export.functions import function_protos
from tfanet_plugins.operations import CROSS_SCAN, DOMAIN, DOMAIN_VERSION, OPSET

pytestmark = pytest.mark.integration

SOURCES = Path(native.__file__).with_name("csrc")
BUILT = pytest.mark.skipif(native.library() is None, reason="tfanet was installed without a C++ compiler")
NAMES = ("x", "p", "dt_weight", "A", "D", "delta_bias")
CASES = [
    # batch, H, W, D, R, N, shift of delta
    pytest.param(1, 1, 1, 1, 1, 1, 0.0, id="one-pixel"),
    pytest.param(1, 33, 16, 3, 2, 16, 0.0, id="16-states"),
    pytest.param(1, 8, 7, 3, 2, 1, -25.0, id="tiny-steps"),
    pytest.param(1, 8, 7, 3, 2, 2, 60.0, id="large-steps"),
    # Around the kernel's own sizes: tiles of 32 tokens, parts of 32 channels, 4 tokens at a time.
    pytest.param(1, 1, 31, 31, 1, 1, 0.0, id="31-tokens-31-channels"),
    pytest.param(1, 4, 8, 32, 4, 1, 0.0, id="32-tokens-32-channels"),
    pytest.param(2, 3, 11, 33, 5, 2, -4.0, id="33-tokens-33-channels"),
    pytest.param(3, 13, 5, 70, 2, 1, 0.0, id="65-tokens-70-channels"),
    pytest.param(1, 1, 37, 3, 2, 3, 0.0, id="row"),
    pytest.param(1, 37, 1, 3, 2, 3, 0.0, id="column"),
    pytest.param(1, 50, 60, 34, 3, 1, -4.0, id="3000-tokens"),
]


def make_inputs(batch, height, width, dim, rank, states, shift=0.0):
    rng = torch.Generator().manual_seed(0)
    shapes = {
        "x": (batch, height, width, dim),
        "p": (batch, height, width, 4 * (rank + 2 * states)),
        "dt_weight": (4 * dim, rank),
        "A": (4 * dim, states),
        "D": (4 * dim,),
        "delta_bias": (4 * dim,),
    }
    inputs = {name: torch.randn(*shape, generator=rng) for name, shape in shapes.items()}
    return inputs | {"A": -inputs["A"].exp(), "delta_bias": inputs["delta_bias"] + shift}


def oracle(inputs):
    return cross_selective_scan_loop(**{name: x.double() for name, x in inputs.items()})


def assert_close(actual, expected):
    assert actual.dtype == torch.float32
    assert (actual.double() - expected).abs().max() <= 2e-6 * max(expected.abs().max().item(), 1.0)


@BUILT
@pytest.mark.parametrize(("batch", "height", "width", "dim", "rank", "states", "shift"), CASES)
def test_kernel_equals_the_reference(batch, height, width, dim, rank, states, shift):
    inputs = make_inputs(batch, height, width, dim, rank, states, shift)
    assert native.supported(inputs["x"], states)
    assert_close(native.cross_selective_scan(**inputs), oracle(inputs))


@BUILT
def test_operation_calls_the_kernel(monkeypatch):
    calls = []
    monkeypatch.setattr(native, "cross_selective_scan", lambda *inputs: calls.append(1) or inputs[0].clone())
    cross_selective_scan(**make_inputs(1, 3, 4, 2, 1, 1))
    assert calls == [1]


@BUILT
def test_result_does_not_depend_on_threads():
    inputs = make_inputs(2, 9, 7, 70, 3, 2)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(native.cross_selective_scan(**inputs))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@BUILT
def test_nan_stays_in_its_channel_and_image():
    inputs = make_inputs(2, 4, 5, 40, 2, 1)
    inputs["x"][1, 2, 3, 35] = torch.nan
    nan = native.cross_selective_scan(**inputs).isnan()
    assert nan[1, 2, 3, 35]
    assert not nan[0].any()
    assert not nan[..., :35].any()
    assert not nan[..., 36:].any()


@pytest.mark.parametrize(
    ("x", "states"),
    [
        (torch.zeros(1, 2, 2, 3, dtype=torch.float64), 1),
        (torch.zeros(1, 0, 2, 3), 1),
        (torch.zeros(1, 2, 2, 3), native.MAX_STATES + 1),
        (torch.zeros(1, 2, 2, 3, device="meta"), 1),
    ],
    ids=["fp64", "empty", "17-states", "no-memory"],
)
def test_unsupported_inputs(x, states):
    assert not native.supported(x, states)


def test_more_states_than_supported_use_the_vectorised_code():
    inputs = make_inputs(1, 4, 5, 3, 2, native.MAX_STATES + 1)
    assert_close(cross_selective_scan(**inputs), oracle(inputs))


def test_environment_variable_disables_the_library():
    code = "from tfanet.ops import native; print(native.library())"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {native.SWITCH: "0"}, capture_output=True, text=True
    )
    assert ran.stdout == "None\n", ran.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize("state", [1, 3])
def test_code_without_avx2(tmp_path_factory, state):
    """The same source without AVX2, and with the compiler's checks for undefined behaviour."""
    path = tmp_path_factory.getbasetemp() / "baseline.so"
    if not path.exists():
        flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-pthread", "-Wno-psabi", "-DTFANET_BASELINE"]
        checks = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
        source = str(SOURCES / "cross_selective_scan.cpp")
        subprocess.run(["g++", *flags, *checks, source, "-o", str(path)], check=True)
    kernel = ctypes.CDLL(str(path)).tfanet_cross_selective_scan
    kernel.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 7
    inputs = make_inputs(2, 9, 7, 70, 3, state, -4.0)
    y = torch.full_like(inputs["x"], torch.nan)
    assert kernel(*(t.data_ptr() for t in (*inputs.values(), y)), *y.shape, 3, state, 2) == 0
    assert_close(y, oracle(inputs))


# ONNX Runtime.


def one_node(inputs, dtype, **shapes):
    """A model of one node with unknown input shapes, so that the kernel must check them."""
    kind = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, kind, [None] * inputs[name].dim()) for name in NAMES]
    node = helper.make_node(CROSS_SCAN, NAMES, ["y"], domain=DOMAIN)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    functions = function_protos("cpu", states=inputs["A"].shape[1], longest=1)
    return helper.make_model(
        helper.make_graph([node], "one", values, [output]), functions=functions, ir_version=10,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
    )  # fmt: skip


def session(model, *, profile=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(native.library()))
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


@BUILT
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("batch", "height", "width", "dim", "rank", "states", "shift"), CASES)
def test_onnx_runtime_runs_the_kernel(batch, height, width, dim, rank, states, shift, dtype):
    inputs = make_inputs(batch, height, width, dim, rank, states, shift)
    feed = {name: x.numpy().astype(dtype) for name, x in inputs.items()}
    rounded = {name: torch.from_numpy(x).float() for name, x in feed.items()}
    model = one_node(inputs, dtype).SerializeToString()
    actual = session(model).run(None, feed)[0]
    assert_close(torch.from_numpy(actual), oracle(rounded))


@BUILT
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("p", (1, 3, 4, 7), "p does not fit"),
        ("dt_weight", (7, 1), "dt_weight does not fit"),
        ("A", (8, 17), "17 states"),
        ("delta_bias", (9,), "delta_bias does not fit"),
    ],
)
def test_onnx_runtime_rejects_invalid_shapes(name, shape, message):
    inputs = make_inputs(1, 3, 4, 2, 1, 1)
    feed = {key: x.numpy() for key, x in inputs.items()} | {name: np.zeros(shape, np.float32)}
    opened = session(one_node(inputs, np.float32).SerializeToString())
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match=message):
        opened.run(None, feed)


@BUILT
@pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
def test_a_model_with_the_kernel_equals_the_function_bodies(fp16, exported, tmp_path):
    path = exported["fp16" if fp16 else "fp32"].path
    rng = np.random.default_rng(0)
    with open_engine(path, native=False) as bodies, open_engine(path) as compiled:
        size, length = bodies.config.image_size, bodies.config.token_length
        images = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        tokens = np.zeros((2, length), np.int64)
        tokens[:, :3] = [49406, 320, 49407]
        expected, actual = (engine.infer(images, tokens) for engine in (bodies, compiled))
    np.testing.assert_allclose(actual, expected, atol=(2e-2 if fp16 else 1e-4) * expected.std())
    traced = session(str(path), profile=tmp_path / "trace")
    traced.run(None, {"image": images, "tokens": tokens})
    events = json.loads(Path(traced.end_profiling()).read_text(encoding="utf-8"))
    kinds = [event["args"].get("op_name") for event in events if event["cat"] == "Node"]
    nodes = sum(node.op_type == CROSS_SCAN for node in onnx.load(path, load_external_data=False).graph.node)
    assert kinds.count(CROSS_SCAN) == nodes > 0
