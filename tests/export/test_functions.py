"""The ONNX function bodies: in ONNX Runtime against float64 loops, and in TensorRT-RTX's builder."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tfanet_export.functions import function_protos, register_schemas
from tfanet_export.scan_bodies_gpu import row_length
from tfanet_plugins.operations import DOMAIN, DOMAIN_VERSION, OPERATIONS, OPSET

pytestmark = pytest.mark.integration

LONGEST = 16_384

TARGETS = [pytest.param("cpu", id="cpu-body"), pytest.param("gpu", id="gpu-body")]
SCAN_CASES = [
    # batch, K, D, N, L, largest |delta|
    pytest.param(1, 1, 1, 1, 1, 1.0, id="one-token"),
    pytest.param(3, 4, 2, 1, 17, 1.0, id="17-tokens"),
    pytest.param(2, 2, 3, 4, 63, 1.0, id="63-tokens-4-states"),
    pytest.param(1, 4, 4, 1, 225, 1.0, id="225-tokens"),
    pytest.param(1, 1, 3, 4, 500, 1.0, id="500-tokens-4-states"),
    pytest.param(1, 2, 2, 1, 129, 1e4, id="extreme-delta"),
    pytest.param(1, 1, 2, 1, 14400, 1.0, id="stage-1-of-480"),
    pytest.param(1, 1, 1, 1, LONGEST, 1.0, id="longest-of-gpu"),
]


def scan_inputs(batch, groups, channels, states, length, delta_range=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "u": rng.standard_normal((batch, groups * channels, length)),
        "delta": rng.uniform(-delta_range, delta_range, (batch, groups * channels, length)),
        "A": -np.exp(rng.standard_normal((groups * channels, states))),
        "B": rng.standard_normal((batch, groups, states, length)),
        "C": rng.standard_normal((batch, groups, states, length)),
        "D": rng.standard_normal(groups * channels),
        "delta_bias": rng.standard_normal(groups * channels),
    }


def scan_loop(u, delta, A, B, C, D, delta_bias):
    u, delta, A, B, C, D, delta_bias = (x.astype(np.float64) for x in (u, delta, A, B, C, D, delta_bias))
    group = u.shape[1] // B.shape[1]
    dt = np.logaddexp(0, delta + delta_bias[:, None])
    B_all, C_all = np.repeat(B, group, axis=1), np.repeat(C, group, axis=1)
    h = np.zeros((*u.shape[:2], A.shape[1]))
    y = np.empty_like(u)
    for t in range(u.shape[2]):
        h = np.exp(dt[..., t, None] * A) * h + (dt[..., t] * u[..., t])[..., None] * B_all[..., t]
        y[..., t] = (h * C_all[..., t]).sum(-1) + D * u[..., t]
    return y


def attention_loop(q, k, v, gamma):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    out = np.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            kv = sum(np.outer(k[b, h, :, n], v[b, h, :, n]) for n in range(k.shape[3]))
            kv = gamma[h] * kv / np.sqrt((kv**2).sum(1, keepdims=True) + 1e-6)
            for n in range(q.shape[3]):
                query = q[b, h, :, n]
                out[b, h, :, n] = (gamma[h] * query / np.sqrt((query**2).sum() + 1e-6)) @ kv
    return out


SYMBOLS = {
    "u": ("b", "C", "L"), "delta": ("b", "C", "L"), "A": ("C", "N"), "B": ("b", "K", "N", "L"),
    "C": ("b", "K", "N", "L"), "D": ("C",), "delta_bias": ("C",),
    "x": ("b", "H", "W", "C"), "p": ("b", "H", "W", "P"), "dt_weight": ("K", "R"),
    "q": ("b", "h", "d", "M"), "k": ("b", "h", "d", "N"), "v": ("b", "h", "d", "N"), "gamma": ("h",),
}  # fmt: skip
FP32_INPUTS = {"A", "D", "delta_bias", "gamma"}


def one_node(op, names, half=False, target="cpu", static=None, states=1, longest=LONGEST):
    """A model of one node; sizes are symbolic, or past axis 0 those of the arrays in `static`."""
    dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT

    def info(name):
        shape = SYMBOLS[name]
        if static is not None:
            sizes = static[name].shape
            shape = [s if s == "b" else size for s, size in zip(shape, sizes, strict=True)]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT if name in FP32_INPUTS else dtype, shape)

    inputs = [info(name) for name in names]
    result_type = TensorProto.FLOAT if "Scan" in op else dtype
    output = helper.make_tensor_value_info("result", result_type, [None] * len(SYMBOLS[names[0]]))
    node = helper.make_node(op, list(names), ["result"], name="op", domain=DOMAIN)
    graph = helper.make_graph([node], "one_node", inputs, [output])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(
        graph,
        functions=function_protos(target, states=states, longest=longest),
        opset_imports=opsets,
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def cast(values, half=False):
    return {
        n: x.astype(np.float16 if half and n not in FP32_INPUTS else np.float32) for n, x in values.items()
    }


@pytest.fixture(scope="module", params=TARGETS)
def scan_session(request):
    """A session for N states; sizes are symbolic, so one serves all N above 1."""
    names = list(scan_inputs(1, 1, 1, 1, 1))
    sessions = [session(one_node("SelectiveScan", names, target=request.param, states=n)) for n in (1, 2)]
    return lambda states: sessions[states > 1]


@pytest.mark.parametrize(("batch", "groups", "channels", "states", "length", "delta_range"), SCAN_CASES)
def test_scan_equals_the_loop(scan_session, batch, groups, channels, states, length, delta_range):
    values = cast(scan_inputs(batch, groups, channels, states, length, delta_range))
    expected = scan_loop(**values)
    (y,) = scan_session(states).run(None, values)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("shift", [-25, -17, -12, 15])
def test_scan_is_precise_for_any_delta(scan_session, shift):
    values = cast(scan_inputs(1, 2, 2, 1, 63))
    values["delta"] += np.float32(shift)
    values["D"] *= 0  # the skip term would mask a small scan
    expected = scan_loop(**values)
    y = scan_session(1).run(None, values)[0]
    assert np.abs(y - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("target", TARGETS)
def test_fp16_scan_keeps_its_state_in_float32(target):
    values = cast(scan_inputs(2, 2, 3, 2, 300), half=True)
    values["delta"] = (values["delta"] - 5).astype(np.float16)
    values["A"] *= 1e-3
    model = one_node("SelectiveScan", list(values), half=True, target=target, states=2)
    (y,) = session(model).run(None, values)
    assert y.dtype == np.float32
    expected = scan_loop(**values)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("target", TARGETS)
def test_scans_of_several_sizes_in_one_graph(target):
    sizes = [(4, 3, 1, 100), (4, 2, 1, 225), (2, 3, 4, 63), (4, 3, 1, 100)]
    nodes, inputs, values, before = [], [], {}, None
    for i, size in enumerate(sizes):
        one = cast(scan_inputs(2, *size, seed=i))
        values |= {f"{name}{i}": x for name, x in one.items()}
        for name, x in one.items():
            shape = ["b" if s == "b" else n for s, n in zip(SYMBOLS[name], x.shape, strict=True)]
            inputs.append(helper.make_tensor_value_info(f"{name}{i}", TensorProto.FLOAT, shape))
        if before:
            nodes.append(helper.make_node("Add", [f"u{i}", before], [f"sum{i}"]))
        operands = [f"sum{i}" if before and name == "u" else f"{name}{i}" for name in one]
        nodes.append(helper.make_node("SelectiveScan", operands, [f"y{i}"], domain=DOMAIN))
        nodes.append(helper.make_node("ReduceMean", [f"y{i}"], [f"mean{i}"]))
        before = f"mean{i}"
    output = helper.make_tensor_value_info("y3", TensorProto.FLOAT, ["b", 12, 100])
    graph = helper.make_graph(nodes, "chain", inputs, [output])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(
        graph,
        functions=function_protos(target, states=2, longest=LONGEST),
        opset_imports=opsets,
        ir_version=10,
    )

    mean = 0.0
    for i in range(len(sizes)):
        one = {name: values[f"{name}{i}"] for name in scan_inputs(1, 1, 1, 1, 1)}
        expected = scan_loop(**(one | {"u": one["u"] + mean}))
        mean = expected.mean()
    (y,) = session(model).run(["y3"], values)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("longest", "row"), [(1, 2), (4, 2), (5, 4), (576, 32), (14400, 128), (16384, 128), (57600, 256)]
)
def test_row_length_of_the_gpu_body_fits_the_longest_scan(longest, row):
    assert row_length(longest) == row


def test_gpu_body_of_another_length():
    values = cast(scan_inputs(1, 2, 2, 2, 1000))
    model = one_node("SelectiveScan", list(values), target="gpu", states=2, longest=1000)
    np.testing.assert_allclose(session(model).run(None, values)[0], scan_loop(**values), rtol=1e-4, atol=1e-4)


def test_gpu_body_fails_on_a_longer_sequence():
    values = cast(scan_inputs(1, 1, 1, 1, LONGEST + 1))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="128 by 129"):
        session(one_node("SelectiveScan", list(values), target="gpu")).run(None, values)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize(
    ("batch", "heads", "width", "queries", "keys"),
    [(1, 1, 1, 1, 1), (2, 3, 4, 17, 63), (1, 2, 16, 225, 17)],
    ids=["smallest", "image-to-text", "text-to-image"],
)
def test_attention_equals_the_loop(batch, heads, width, queries, keys, half):
    rng = np.random.default_rng(3)
    values = cast({
        "q": rng.standard_normal((batch, heads, width, queries)),
        "k": rng.standard_normal((batch, heads, width, keys)),
        "v": rng.standard_normal((batch, heads, width, keys)),
        "gamma": rng.uniform(0.5, 2, heads),
    }, half)  # fmt: skip
    (out,) = session(one_node("LinearCrossAttention", list(values), half)).run(None, values)
    assert out.dtype == values["q"].dtype
    tolerance = 2e-3 if half else 2e-6
    np.testing.assert_allclose(out, attention_loop(**values), rtol=tolerance, atol=tolerance)


CROSS_CASES = [
    # batch, H, W, D, R, N, shift of delta
    pytest.param(1, 1, 1, 1, 1, 1, 0.0, id="one-pixel"),
    pytest.param(2, 1, 17, 3, 2, 1, 0.0, id="one-row"),
    pytest.param(2, 13, 1, 3, 2, 2, 0.0, id="one-column"),
    pytest.param(2, 5, 9, 4, 3, 4, 0.0, id="wide-4-states"),
    pytest.param(1, 15, 15, 2, 1, 1, 0.0, id="stage-4-of-480"),
    pytest.param(1, 120, 120, 1, 1, 1, 0.0, id="stage-1-of-480"),
    pytest.param(1, 8, 7, 3, 2, 1, -25.0, id="tiny-steps"),
    pytest.param(1, 8, 7, 3, 2, 2, 1e4, id="extreme-steps"),
]


def cross_inputs(batch, height, width, channels, rank, states, shift=0.0):
    rng = np.random.default_rng(4)
    return {
        "x": rng.standard_normal((batch, height, width, channels)),
        "p": rng.standard_normal((batch, height, width, 4 * (rank + 2 * states))),
        "dt_weight": rng.standard_normal((4 * channels, rank)),
        "A": -np.exp(rng.standard_normal((4 * channels, states))),
        "D": rng.standard_normal(4 * channels),
        "delta_bias": rng.standard_normal(4 * channels) + shift,
    }


def cross_loop(x, p, dt_weight, A, D, delta_bias):
    """Four scans over explicit lists of pixels."""
    _, height, width, channels = x.shape
    rank, states = dt_weight.shape[1], A.shape[1]
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    y = np.zeros(x.shape)
    for k, order in enumerate((rows, columns, rows[::-1], columns[::-1])):
        i, j = np.array(order).T
        p_k = p[:, i, j, k * (rank + 2 * states) : (k + 1) * (rank + 2 * states)].astype(np.float64)
        dt, B, C = np.split(p_k, [rank, rank + states], axis=-1)
        part = slice(k * channels, (k + 1) * channels)
        delta = dt @ dt_weight[part].T.astype(np.float64)
        y[:, i, j] += scan_loop(
            u=x[:, i, j].transpose(0, 2, 1), delta=delta.transpose(0, 2, 1),
            A=A[part], B=B.transpose(0, 2, 1)[:, None], C=C.transpose(0, 2, 1)[:, None], D=D[part],
            delta_bias=delta_bias[part],
        ).transpose(0, 2, 1)  # fmt: skip
    return y


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize(("batch", "height", "width", "channels", "rank", "states", "shift"), CROSS_CASES)
def test_cross_scan_equals_four_loops(batch, height, width, channels, rank, states, shift, half, target):
    values = cast(cross_inputs(batch, height, width, channels, rank, states, shift), half)
    expected = cross_loop(**values)
    model = one_node("CrossSelectiveScan", list(values), half, target, states=states)
    (y,) = session(model).run(None, values)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(expected).max()))


def test_fp16_attention_sums_beyond_the_range_of_float16():
    values = cast({name: np.full((1, 1, 2, 400), 20.0) for name in "qkv"} | {"gamma": np.ones(1)}, half=True)
    (out,) = session(one_node("LinearCrossAttention", list(values), half=True)).run(None, values)
    np.testing.assert_allclose(out, attention_loop(**values), rtol=1e-3)


def test_attention_of_zeros_is_zero():
    values = cast({name: np.zeros((1, 1, 2, 3)) for name in "qkv"} | {"gamma": np.ones(1)})
    (out,) = session(one_node("LinearCrossAttention", list(values))).run(None, values)
    assert not out.any()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("length", [17, 225, 14400])
def test_tensorrt_rtx_builds_the_scan_for_sm89(target, half, length):
    values = cast(scan_inputs(1, 4, 2, 1, length), half)
    assert rtx_plan_size(one_node("SelectiveScan", list(values), half, target, static=values)) > 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [(9, 5), (120, 120)], ids=["9x5", "120x120"])
def test_tensorrt_rtx_builds_the_cross_scan_for_sm89(target, size):
    values = cast(cross_inputs(1, *size, 2, 1, 1), half=True)
    assert rtx_plan_size(one_node("CrossSelectiveScan", list(values), True, target, static=values)) > 0


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_tensorrt_rtx_builds_the_attention_for_sm89(half):
    values = cast({name: np.ones((1, 2, 4, 17)) for name in "qkv"} | {"gamma": np.ones(2)}, half)
    assert rtx_plan_size(one_node("LinearCrossAttention", list(values), half, static=values)) > 0


def rtx_plan_size(model):
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(model.SerializeToString())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        shape = tuple(network.get_input(i).shape)
        if -1 in shape:
            profile.set_shape(network.get_input(i).name, *((batch, *shape[1:]) for batch in (1, 2, 8)))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config).nbytes


@pytest.mark.parametrize("target", TARGETS)
def test_bodies_have_no_loop_and_a_limited_number_of_nodes(target):
    for function in function_protos(target, states=1, longest=LONGEST):
        kinds = [node.op_type for node in function.node]
        scans = {"SelectiveScan": 5, "CrossSelectiveScan": 20}.get(function.name, 0)
        assert "Loop" not in kinds
        assert kinds.count("Scan") == (scans if target == "cpu" else 0)
        assert len(kinds) < 400


def test_schemas_match_the_functions():
    register_schemas()
    register_schemas()
    functions = {f.name: f for f in function_protos("cpu", states=1, longest=LONGEST)}
    for name in (operation.onnx_type for operation in OPERATIONS):
        schema = onnx.defs.get_schema(name, DOMAIN_VERSION, DOMAIN)
        assert [p.name for p in schema.inputs] == list(functions[name].input)
        assert [p.name for p in schema.outputs] == list(functions[name].output)
        # TensorRT finds functions by op type alone, so a standard op's name would silently become that op.
        assert not onnx.defs.has(name)


def test_unknown_target_is_rejected():
    with pytest.raises(ValueError, match="cpu, gpu"):
        function_protos("tpu", states=1, longest=LONGEST)
