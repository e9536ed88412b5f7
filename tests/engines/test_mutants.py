"""Hundreds of damaged plans, sidecars and ONNX files: each opens and runs, or raises one `UserError`."""

from __future__ import annotations

import onnx
import pytest
from fakes.tensorrt import FakeTensorRT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_engines import write_sidecar

from tfanet.errors import UserError
from tfanet_engines import build_plan, open_engine, run_plan, trust
from tfanet_engines.sidecar import Sidecar, sidecar_path

pytestmark = pytest.mark.integration

MUTANTS = 300
many = settings(
    max_examples=MUTANTS,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
place = st.floats(0, 1, exclude_max=True)
edits = st.lists(
    st.one_of(
        st.tuples(st.just("set"), place, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("delete"), place, st.integers(1, 16)),
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("cut"), place, st.none()),
    ),
    min_size=1,
    max_size=6,
)


def mutate(data, changes):
    mutant = bytearray(data)
    for kind, share, value in changes:
        at = int(share * len(mutant))
        if kind == "set":
            mutant[at : at + len(value)] = value
        elif kind == "insert":
            mutant[at:at] = value
        elif kind == "delete":
            del mutant[at : at + value]
        elif kind == "flip" and mutant:
            mutant[at] ^= 1 << value
        elif kind == "cut":
            del mutant[at:]
    return bytes(mutant)


def outcome(path, use=lambda engine: None, **options):
    """`ran`, or the message of a `UserError`; any other exception fails the test."""
    try:
        with open_engine(path, **options) as engine:
            use(engine)
    except UserError as error:
        return str(error)
    return "ran"


def test_damaged_onnx_files_without_a_sidecar(onnx_file, pairs):
    data, outcomes = onnx_file.read_bytes(), []

    def use(engine):
        size, length = engine.config.image_size, engine.config.token_length
        if (size, length) == (32, 5):
            assert engine.infer(*pairs[:2]).shape == (2, 32, 32)

    @many
    @given(edits)
    def check(changes):
        onnx_file.write_bytes(mutate(data, changes))
        outcomes.append(outcome(onnx_file, use, threads=1))

    check()
    refused = [message for message in outcomes if message != "ran"]
    assert MUTANTS // 2 < len(refused) < len(outcomes)
    assert not any("\n" in message for message in refused)


OPERATORS = [
    "Cast",
    "MatMul",
    "Squeeze",
    "Unsqueeze",
    "Add",
    "Reshape",
    "Loop",
    "If",
    "NoSuchOp",
    "Conv",
    "Scan",
]
changes_of_a_graph = st.lists(
    st.one_of(
        st.tuples(st.just("operator"), st.integers(0, 7), st.sampled_from(OPERATORS)),
        st.tuples(st.just("domain"), st.integers(0, 7), st.sampled_from(["tfanet", "ai.onnx.ml", "x"])),
        st.tuples(st.just("input"), st.integers(0, 7), st.sampled_from(["image", "weight", "", "none"])),
        st.tuples(st.just("dims"), st.integers(0, 2), st.lists(st.integers(-2, 2**40), max_size=4)),
        st.tuples(st.just("bytes"), st.integers(0, 2), st.binary(max_size=32)),
        st.tuples(st.just("type"), st.integers(0, 2), st.integers(-1, 30)),
        st.tuples(st.just("shape"), st.integers(0, 1), st.integers(-3, 2**40)),
        st.tuples(st.just("opset"), st.just(0), st.integers(-1, 99)),
    ),
    min_size=1,
    max_size=3,
)


def change_graph(model, changes):
    for kind, index, value in changes:
        node = model.graph.node[index]
        weight = model.graph.initializer[index % 3]
        if kind == "operator":
            node.op_type = value
        elif kind == "domain":
            node.domain = value
        elif kind == "input":
            node.input[0] = value
        elif kind == "dims":
            weight.dims[:] = value
        elif kind == "bytes":
            weight.raw_data = value
        elif kind == "type":
            weight.data_type = value
        elif kind == "shape":
            model.graph.input[index].type.tensor_type.shape.dim[1].dim_value = value
        else:
            model.opset_import[0].version = value


def test_onnx_files_with_a_changed_graph(onnx_file, pairs):
    data, outcomes = onnx_file.read_bytes(), []

    def use(engine):
        assert engine.infer(*pairs[:2]).shape == (2, 32, 32)

    @many
    @given(changes_of_a_graph)
    def check(changes):
        model = onnx.load_model_from_string(data)
        change_graph(model, changes)
        onnx_file.write_bytes(model.SerializeToString())
        outcomes.append(outcome(onnx_file, use, threads=1))

    check()
    assert (
        sum("is not a valid ONNX file" not in m and m != "ran" for m in outcomes) > 20
    )  # ONNX Runtime's own


def test_damaged_onnx_files_with_a_sidecar(onnx_file, small_config):
    write_sidecar(onnx_file, small_config, kind="onnx", builder="torch.onnx")
    data = onnx_file.read_bytes()

    @settings(many, max_examples=100)
    @given(edits)
    def check(changes):
        mutant = mutate(data, changes)
        onnx_file.write_bytes(mutant)
        message = outcome(onnx_file, threads=1)
        if mutant == data:
            assert message == "ran"
        else:
            assert "truncated or altered" in message or "is empty" in message

    check()


def test_damaged_sidecars(plan, small_config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # a mutant may run and save its kernels
    trt = pytest.importorskip("tensorrt_rtx")
    write_sidecar(plan, small_config, builder_version=trt.__version__)
    FakeTensorRT(trt).install(monkeypatch)
    path = sidecar_path(plan)
    data, outcomes = path.read_bytes(), []

    @many
    @given(edits)
    def check(changes):
        path.write_bytes(mutate(data, changes))
        outcomes.append(outcome(plan))

    check()
    assert sum(message != "ran" for message in outcomes) > MUTANTS // 2


def test_damaged_plans_with_the_old_sidecar_and_a_new_one(tmp_path, onnx_file, small_config, monkeypatch):
    """With the real library, which reads the damaged plan if its sidecar is new and `trust=True`."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(run_plan, "gpu_for", lambda file, sidecar: None)
    plan = build_plan(onnx_file, tmp_path / "model.plan").plan
    data, sidecar = plan.read_bytes(), Sidecar.read(plan)
    version = sidecar.builder_version

    @settings(many, max_examples=150)
    @given(edits)
    def check(changes):
        plan.write_bytes(mutant := mutate(data, changes))
        sidecar.write(plan)
        message = outcome(plan)
        assert mutant == data or "truncated or altered" in message or "is empty" in message
        if mutant:
            write_sidecar(plan, small_config, builder_version=version)
            assert mutant == data or "not built by you" in outcome(plan)
            assert "tensorrt_rtx rejects" in outcome(plan, trust=True)

    check()
    assert trust.built_here(sidecar.file_sha256)
