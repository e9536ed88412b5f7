"""Plans of TensorRT 10 and 11 with NVIDIA's names and parameters; library and GPU are fakes."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.integration

VERSIONS = ["11.4.0.106", "10.16.1.11", pytest.param("10.9.0.34", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=VERSIONS)
def ran(request, ask_tensorrt, tmp_path_factory) -> dict[str, Any]:
    plan = tmp_path_factory.mktemp("plan") / "small.plan"
    plan.write_bytes(b"a plan")
    run = {"plan": str(plan), "version_compatible": False}
    return ask_tensorrt(request.param, run, job="run_plan")


def test_threads_get_their_own_results(ran):
    assert len(ran["errors"]) == ran["calls"] == 16
    assert max(ran["errors"]) < 1e-3


def test_graphs_are_captured_once_per_context_and_size_then_replayed(ran):
    assert 3 <= ran["captures"] <= 6  # three sizes on at most two contexts
    assert ran["captures"] + ran["replays"] == ran["calls"]


def test_tensors_are_bound_by_address(ran):
    assert ran["tensor_error"] < 1e-3


def test_batch_and_memory_are_those_of_the_engine(ran):
    assert ran["batch"] == [1, 2, 8]
    assert ran["context_bytes"] == 64 + 8 * (32 * 32 * 3 + 17 * 8 + 32 * 32 * 4)


def test_contexts_are_freed_before_the_engine_before_the_runtime(ran):
    events = ran["events"]
    assert events[0] == "deserialised"  # TensorRT does not check the header first
    assert events[-2:] == ["engine", "runtime"]
    assert set(events[1:-2]) == {"context"}


def test_host_code_is_not_allowed_by_default(ran):
    assert not ran["host_code"]


def test_host_code_is_allowed_for_a_version_compatible_plan(ask_tensorrt, tmp_path):
    plan = tmp_path / "compatible.plan"
    plan.write_bytes(b"a plan")
    run = {"plan": str(plan), "version_compatible": True}
    assert ask_tensorrt("11.4.0.106", run, job="run_plan")["host_code"]
