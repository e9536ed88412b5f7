"""The GPU's benchmark on the CPU: all but CUDA's events, on tiny problems, with the operations as kernels."""

from __future__ import annotations

import importlib
import os
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from gpu_setup import KERNELS, SMALL, gpu_cases, gpu_measure, host_timer, scan_measure, scan_module

import tfanet.ops as ops
from tfanet.ops import dispatch

Shape, Timing = scan_measure.Shape, gpu_measure.Timing
Candidate, Case = gpu_measure.Candidate, gpu_measure.Case
CPU = torch.device("cpu")


def by_name(rows):
    return {row.name: row for row in rows}


# The timer by events.


class FakeCuda:
    """Stands in for the events of a device on which every recorded call takes 2 ms."""

    def __init__(self, monkeypatch):
        self.log = []
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(gpu_measure, "FLUSHED_BYTES", 64)
        monkeypatch.setattr(gpu_measure, "WARMUP_SECONDS", 0.0)

    def event(self, enable_timing):
        assert enable_timing
        record = SimpleNamespace(record=lambda: self.log.append("event"))
        record.elapsed_time = lambda other: 2.0
        return record


def test_events_stand_around_the_call_and_flushes_before(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    timer = gpu_measure.EventTimer(CPU, 7, 10.0)
    flush = timer._flush
    monkeypatch.setattr(timer, "_flush", lambda: cuda.log.append("flush") or flush())
    cuda.log.clear()
    timing = timer(lambda: cuda.log.append("call"))
    warm = gpu_measure.WARMUP_CALLS
    assert cuda.log == ["call"] * warm + ["flush", "event", "call", "event"] * 7
    assert timing.seconds == pytest.approx([0.002] * 7)
    assert not timing.host_bound


def test_a_launch_longer_than_all_flushes_is_marked(monkeypatch):
    FakeCuda(monkeypatch)
    monkeypatch.setattr(gpu_measure, "HOST_LIKE", 0.01)
    timer = gpu_measure.EventTimer(CPU, 5, 10.0)
    assert not timer(lambda: time.sleep(0.05)).host_bound  # the device takes 2 ms, more than 0.01 * 50 ms
    monkeypatch.setattr(gpu_measure, "HOST_LIKE", 1.5)
    timing = timer(lambda: time.sleep(0.05))
    assert timing.host_bound
    assert 0.05 <= timing.host_seconds < 0.5


def test_a_flush_writes_and_reads_the_whole_buffer(monkeypatch):
    FakeCuda(monkeypatch)
    timer = gpu_measure.EventTimer(CPU, 5, 10.0)
    timer._buffer.fill_(3.0)
    assert timer._flush() == 0
    assert timer._buffer.nbytes == 64
    assert not timer._buffer.any()


@pytest.mark.parametrize(
    ("host", "flush", "expected"),
    [
        pytest.param(0.0, 1e-4, 1, id="no-launch"),
        pytest.param(4e-5, 1e-4, 1, id="short"),
        pytest.param(1.2e-4, 1e-4, 3, id="longer-than-a-flush"),
        pytest.param(8e-4, 1e-4, 16, id="as-many-as-may-be"),
        pytest.param(1e-2, 1e-4, 1, id="hopeless"),
        pytest.param(1e-2, 0.0, 1, id="flush-not-known-yet"),
    ],
)
def test_flushes_keep_the_device_busy_while_the_host_launches(host, flush, expected):
    assert gpu_measure.flushes_before(host, flush) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.01, 50), (1.0, 20), (100.0, gpu_measure.FEWEST_RUNS), (0.0, 50)],
    ids=["all", "as-the-limit-allows", "fewest", "no-time"],
)
def test_runs_fit_into_the_limit(seconds, expected):
    assert gpu_measure.run_count(seconds, 50, 20.0) == expected


def test_the_copy_counts_what_is_read_and_what_is_written():
    copied = []

    def timer(call):
        copied.append(call())
        return Timing([0.5, 0.25, 1.0])

    assert gpu_measure.copy_bandwidth(CPU, timer, 4000) == 2 * 4000 / 0.5
    assert torch.equal(copied[0], torch.ones(1000))


# Checking before timing.


def toy_case(*candidates):
    x = torch.ones(4)
    return Case("scan", "toy", 1, "FP32", (x,), lambda: x, candidates)


def missing():
    raise gpu_measure.NotHere("not built")


def broken():
    raise RuntimeError("no kernel image\nand more")


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        pytest.param(lambda: lambda: torch.full((4,), 1.1), "wrong by 1.0e-01, so not timed", id="wrong"),
        pytest.param(lambda: lambda: torch.full((4,), torch.nan), "wrong by nan, so not timed", id="nan"),
        pytest.param(
            lambda: lambda: torch.ones(3), "failed: ValueError: a result is [3], not [4]", id="shape"
        ),
        pytest.param(missing, "not built", id="missing"),
        pytest.param(lambda: broken, "failed: RuntimeError: no kernel image", id="broken"),
        pytest.param(broken, "failed: RuntimeError: no kernel image", id="broken-before"),
    ],
)
def test_what_is_not_right_is_not_timed(prepare, why):
    timed = []
    right = Candidate("right", lambda: lambda: torch.ones(4), 1e-3)
    case = toy_case(Candidate("odd", prepare, 1e-3, ours=True), right)
    odd, other = gpu_measure.measure(case, lambda call: timed.append(call) or Timing([0.25]))
    assert (odd.why, odd.seconds, odd.ours) == (why, [], True)
    assert (other.why, other.seconds, other.moved_bytes, other.error) == ("", [0.25], 32, 0.0)
    assert len(timed) == 1


def test_triton_errors_are_failures():
    errors = pytest.importorskip("triton.errors")
    assert errors.TritonError in gpu_measure.failures()


def test_without_a_reference_nothing_is_timed():
    case = Case("scan", "toy", 1, "FP32", (), broken, [Candidate("right", lambda: broken, 1e-3)])
    (row,) = gpu_measure.measure(case, host_timer)
    assert row.why == "nothing to check against: RuntimeError: no kernel image"


def test_the_error_is_that_of_the_worst_tensor():
    expected = (torch.tensor([1.0, -4.0]), torch.tensor([2.0]))
    found = (torch.tensor([1.0, -4.0]), torch.tensor([3.0], dtype=torch.float16))
    assert gpu_measure.relative_error(found, expected) == 0.5


# The cases.


OPENERS = {
    "scan": (gpu_cases.scan_case, SMALL),
    "backward": (gpu_cases.backward_case, SMALL),
    "cross": (gpu_cases.cross_case, SMALL),
    "attention": (gpu_cases.attention_case, gpu_cases.Attention(12, 5, 2, 4)),
}


@pytest.mark.parametrize("dtype", gpu_cases.DTYPES)
@pytest.mark.parametrize("section", OPENERS)
def test_ours_and_the_vectorised_path_are_right_and_timed(section, dtype):
    open_case, size = OPENERS[section]
    case = open_case(size, 2, dtype, CPU, KERNELS)
    rows = gpu_measure.measure(case, host_timer)
    found = {row.name for row in rows if len(row.seconds) == 3}
    rivals = {gpu_cases.MAMBA, gpu_cases.MAMBA_WIDE, gpu_cases.OFLEX}
    assert found == {row.name for row in rows} - rivals
    assert sum(row.ours for row in rows) == 1
    assert next(row for row in rows if row.ours).error <= 1e-5
    assert case.section == section == rows[0].section
    assert case.inputs[0].dtype == (torch.float32 if section == "backward" else gpu_cases.DTYPES[dtype])


def test_bytes_are_those_of_every_operand_once():
    rows = gpu_measure.measure(gpu_cases.scan_case(SMALL, 2, "FP16", CPU, KERNELS), host_timer)
    tokens, rows_of_u = 2 * 12, 4 * 3
    u, weights, result = 2 * rows_of_u * tokens, 2 * 4 * 2 * tokens, 4 * rows_of_u * tokens
    parameters = 4 * rows_of_u * (2 + 1 + 1)
    assert by_name(rows)[gpu_cases.TRITON].moved_bytes == 2 * u + 2 * weights + parameters + result


def install(monkeypatch, name, **attributes):
    """A module of that name, as if it were installed."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


def mamba_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    assert delta_softplus
    assert (z, return_last_state) == (None, False)
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    return ops.selective_scan(u, delta, A, B, C, D, delta_bias).to(u.dtype)


def oflex_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows, out_float, /):
    assert (delta_softplus, nrows, out_float) == (True, 1, True)
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
    return [ops.selective_scan(u, delta, A, B, C, D, delta_bias), torch.tensor([7.0])]


def oflex_bwd(u, delta, A, B, C, D, delta_bias, dout, x, delta_softplus, nrows, /):
    assert (x.item(), delta_softplus, nrows) == (7.0, True, 1)
    return list(scan_module.selective_scan_backward(dout, u, delta, A, B, C, D, delta_bias))


@pytest.fixture
def rivals(monkeypatch):
    """mamba_ssm and VMamba's extension with their signatures, computed by our operations."""
    install(monkeypatch, "mamba_ssm")
    install(monkeypatch, "mamba_ssm.ops")
    install(monkeypatch, "mamba_ssm.ops.selective_scan_interface", selective_scan_fn=mamba_fn)
    install(monkeypatch, "selective_scan_cuda_oflex", fwd=oflex_fwd, bwd=oflex_bwd)


@pytest.mark.parametrize("dtype", gpu_cases.DTYPES)
@pytest.mark.parametrize("section", ["scan", "backward"])
def test_rivals_are_called_as_they_want_to_be(rivals, section, dtype):
    open_case, size = OPENERS[section]
    rows = by_name(gpu_measure.measure(open_case(size, 2, dtype, CPU, KERNELS), host_timer))
    expected = [gpu_cases.TRITON, gpu_cases.MAMBA, gpu_cases.OFLEX, gpu_cases.VECTORISED]
    if section == "scan" and dtype == "FP16":
        expected.insert(2, gpu_cases.MAMBA_WIDE)
        assert rows[gpu_cases.MAMBA].moved_bytes < rows[gpu_cases.MAMBA_WIDE].moved_bytes
    assert list(rows) == expected
    assert [row.why for row in rows.values()] == [""] * len(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the rivals may be installed beside a GPU")
@pytest.mark.parametrize("section", ["scan", "backward"])
def test_rivals_that_are_not_here_say_so(section):
    open_case, size = OPENERS[section]
    rows = by_name(gpu_measure.measure(open_case(size, 1, "FP16", CPU, KERNELS), host_timer))
    assert rows[gpu_cases.MAMBA].why == "not installed"
    assert rows[gpu_cases.OFLEX].why == "not built"


def test_the_compiled_path_is_checked_too(monkeypatch):
    def compiled(function, **options):
        assert options == {"dynamic": False}
        return lambda *inputs: 1.01 * function(*inputs)

    monkeypatch.setattr(torch, "compile", compiled)
    row = gpu_cases.measure_compiled(SMALL, 1, "FP16", CPU, 3, 1.0, lambda *_: host_timer)
    assert row.why == "wrong by 1.0e-02, so not timed"
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    row = gpu_cases.measure_compiled(SMALL, 1, "FP16", CPU, 3, 1.0, lambda *_: host_timer)
    assert (row.name, row.why, len(row.seconds)) == (gpu_cases.COMPILED, "", 3)


@pytest.mark.parametrize("dtype", gpu_cases.DTYPES)
def test_the_model_runs_with_our_kernels_and_without(random_model, monkeypatch, dtype):
    pytest.importorskip("triton")
    seen = []
    vmamba = importlib.import_module("tfanet.vmamba")
    cross_module = importlib.import_module("tfanet.ops.cross_selective_scan")
    cross = vmamba.cross_selective_scan

    def watched(*inputs):
        seen.append((dispatch.has_triton(), *(kernel.name for kernel in cross_module.gpu_kernels("cuda"))))
        return cross(*inputs)

    rivals = dispatch.GpuKernels(*[dispatch.Kernel("mamba_ssm", cross)] * 3)
    monkeypatch.setattr(vmamba, "cross_selective_scan", watched)
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    for module in (scan_module, cross_module):
        monkeypatch.setattr(module, "gpu_kernels", lambda device_type: rivals)
    case = gpu_cases.model_case(random_model, 2, dtype, CPU)
    ways = {candidate.name: candidate.prepare() for candidate in case.candidates}
    with torch.no_grad():
        ways[gpu_cases.OUR_KERNELS]()
        assert set(seen) == {(True, gpu_cases.TRITON, gpu_cases.TRITON, gpu_cases.FUSED)}
        seen.clear()
        logits = ways[gpu_cases.VECTORISED]()
    assert set(seen) == {(False, *["mamba_ssm"] * 3)}
    assert dispatch.has_triton()
    assert logits.shape == (2, 96, 96)


# A process with a time limit.


def test_a_process_of_its_own_gives_its_result():
    assert gpu_measure.within(60, os.getpid) != os.getpid()


@pytest.mark.parametrize(
    ("seconds", "function", "argument", "error"),
    [
        pytest.param(0.2, time.sleep, 60, TimeoutError, id="too-slow"),
        pytest.param(60, os._exit, 1, EOFError, id="dies"),
    ],
)
def test_a_process_that_gives_none_ends(seconds, function, argument, error):
    started = time.monotonic()
    with pytest.raises(error):
        gpu_measure.within(seconds, function, argument)
    assert time.monotonic() - started < 30
