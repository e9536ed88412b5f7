"""`gpu_measure.py` and `gpu_cases.py` on the CPU, with our operations as kernels and small inputs."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import gpu_cases
import gpu_measure
import kernel_choice
import pytest
import torch
from gpu_measure import Candidate, Case
from gpu_setup import KERNELS, SMALL, host_timer
from report import NotAvailable
from timing import Timing

import tfanet.ops as ops
from tfanet.ops import dispatch

CPU = torch.device("cpu")
scan_module = importlib.import_module("tfanet.ops.selective_scan")


def by_name(rows):
    return {row.name: row for row in rows}


def toy_case(*candidates):
    x = torch.ones(4)
    return Case("scan", "toy", 1, "FP32", (x,), lambda: x, candidates)


def missing():
    raise NotAvailable("not built")


def broken():
    raise RuntimeError("no kernel image\nand more")


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        pytest.param(lambda: lambda: torch.full((4,), 1.1), "relative error 1.0e-01, not timed", id="wrong"),
        pytest.param(lambda: lambda: torch.full((4,), torch.nan), "relative error nan, not timed", id="nan"),
        pytest.param(
            lambda: lambda: torch.ones(3), "failed: ValueError: a result is [3], not [4]", id="shape"
        ),
        pytest.param(missing, "not built", id="missing"),
        pytest.param(lambda: broken, "failed: RuntimeError: no kernel image", id="broken"),
        pytest.param(broken, "failed: RuntimeError: no kernel image", id="broken-before"),
    ],
)
def test_wrong_or_failing_candidates_are_not_timed(prepare, why):
    timed = []
    correct = Candidate("correct", lambda: lambda: torch.ones(4), 1e-3)
    case = toy_case(Candidate("wrong", prepare, 1e-3, ours=True), correct)
    wrong, other = gpu_measure.measure(case, lambda call: timed.append(call) or Timing([0.25]))
    assert (wrong.why, wrong.seconds, wrong.ours) == (why, [], True)
    assert (other.why, other.seconds, other.moved_bytes, other.error) == ("", [0.25], 32, 0.0)
    assert len(timed) == 1


def test_without_a_reference_nothing_is_timed():
    case = Case("scan", "toy", 1, "FP32", (), broken, [Candidate("correct", lambda: broken, 1e-3)])
    (row,) = gpu_measure.measure(case, host_timer)
    assert row.why == "the reference failed: RuntimeError: no kernel image"


def test_relative_error_is_that_of_the_worst_tensor():
    expected = (torch.tensor([1.0, -4.0]), torch.tensor([2.0]))
    actual = (torch.tensor([1.0, -4.0]), torch.tensor([3.0], dtype=torch.float16))
    assert gpu_measure.relative_error(actual, expected) == 0.5


OPENERS = {
    "scan": (gpu_cases.scan_case, SMALL),
    "backward": (gpu_cases.backward_case, SMALL),
    "cross": (gpu_cases.cross_case, SMALL),
    "attention": (gpu_cases.attention_case, gpu_cases.Attention(12, 5, 2, 4)),
}


@pytest.mark.parametrize("dtype", gpu_cases.DTYPES)
@pytest.mark.parametrize("section", OPENERS)
def test_ours_and_the_vectorised_path_are_correct_and_timed(section, dtype):
    open_case, size = OPENERS[section]
    case = open_case(size, 2, dtype, CPU, KERNELS)
    rows = gpu_measure.measure(case, host_timer)
    timed = {row.name for row in rows if len(row.seconds) == 3}
    assert timed == {row.name for row in rows} - {gpu_cases.MAMBA, gpu_cases.MAMBA_FP32, gpu_cases.OFLEX}
    assert sum(row.ours for row in rows) == 1
    assert next(row for row in rows if row.ours).error <= 1e-5
    assert case.section == section == rows[0].section
    assert case.inputs[0].dtype == (torch.float32 if section == "backward" else gpu_cases.DTYPES[dtype])


def test_moved_bytes_count_every_operand_once():
    rows = gpu_measure.measure(gpu_cases.scan_case(SMALL, 2, "FP16", CPU, KERNELS), host_timer)
    tokens, rows_of_u = 2 * 12, 4 * 3
    u, weights, result = 2 * rows_of_u * tokens, 2 * 4 * 2 * tokens, 4 * rows_of_u * tokens
    parameters = 4 * rows_of_u * (2 + 1 + 1)
    assert by_name(rows)[gpu_cases.TRITON].moved_bytes == 2 * u + 2 * weights + parameters + result


def install(monkeypatch, name, **attributes):
    """Install a fake module."""
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
def other_scans(monkeypatch):
    """Fakes of mamba_ssm and VMamba's extension with their signatures, computed by our operations."""
    install(monkeypatch, "mamba_ssm")
    install(monkeypatch, "mamba_ssm.ops")
    install(monkeypatch, "mamba_ssm.ops.selective_scan_interface", selective_scan_fn=mamba_fn)
    install(monkeypatch, "selective_scan_cuda_oflex", fwd=oflex_fwd, bwd=oflex_bwd)


@pytest.mark.parametrize("dtype", gpu_cases.DTYPES)
@pytest.mark.parametrize("section", ["scan", "backward"])
def test_other_scans_are_called_with_their_signatures(other_scans, section, dtype):
    open_case, size = OPENERS[section]
    rows = by_name(gpu_measure.measure(open_case(size, 2, dtype, CPU, KERNELS), host_timer))
    expected = [gpu_cases.TRITON, gpu_cases.MAMBA, gpu_cases.OFLEX, gpu_cases.VECTORISED]
    if section == "scan" and dtype == "FP16":
        expected.insert(2, gpu_cases.MAMBA_FP32)
        assert rows[gpu_cases.MAMBA].moved_bytes < rows[gpu_cases.MAMBA_FP32].moved_bytes
    assert list(rows) == expected
    assert [row.why for row in rows.values()] == [""] * len(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="they may be installed on a machine with a GPU")
@pytest.mark.parametrize("section", ["scan", "backward"])
def test_missing_packages_are_named(section):
    open_case, size = OPENERS[section]
    rows = by_name(gpu_measure.measure(open_case(size, 1, "FP16", CPU, KERNELS), host_timer))
    assert rows[gpu_cases.MAMBA].why == "not installed"
    assert rows[gpu_cases.OFLEX].why == "not built"


def test_compiled_path_is_checked(monkeypatch):
    def compiled(function, **options):
        assert options == {"dynamic": False}
        return lambda *inputs: 1.01 * function(*inputs)

    monkeypatch.setattr(torch, "compile", compiled)
    job = gpu_cases.CompiledJob(SMALL, 1, "FP16", CPU, 3, 1.0)
    row = gpu_cases.measure_compiled(job, timer=lambda *_: host_timer)
    assert row.why == "relative error 1.0e-02, not timed"
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    row = gpu_cases.measure_compiled(job, timer=lambda *_: host_timer)
    assert (row.name, row.why, len(row.seconds)) == (gpu_cases.COMPILED, "", 3)


@pytest.mark.parametrize("dtype", gpu_cases.DTYPES)
def test_model_runs_with_our_kernels_and_without(random_model, monkeypatch, dtype):
    pytest.importorskip("triton")
    used = []
    vmamba = importlib.import_module("tfanet.vmamba")
    cross_module = importlib.import_module("tfanet.ops.cross_selective_scan")
    cross = vmamba.cross_selective_scan

    def recording(*inputs):
        kernels = cross_module.gpu_kernels(inputs[0])
        used.append(kernels and kernels.name)
        return cross(*inputs)

    monkeypatch.setattr(vmamba, "cross_selective_scan", recording)
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    monkeypatch.setattr(dispatch, "_setting", "mamba-ssm")
    monkeypatch.setattr(dispatch, "mamba_scan", lambda: cross)
    case = gpu_cases.model_case(random_model, 2, dtype, CPU)
    calls = {candidate.name: candidate.prepare() for candidate in case.candidates}
    with torch.no_grad():
        calls[gpu_cases.OUR_KERNELS]()
        assert set(used) == {"Triton"}
        used.clear()
        logits = calls[gpu_cases.VECTORISED]()
    assert set(used) == {None}
    assert dispatch._setting == "mamba-ssm"
    assert dispatch.has_triton()
    assert logits.shape == (2, 96, 96)


@pytest.mark.parametrize(("device", "reason"), [("cpu", "it needs CUDA"), ("cuda", "not installed")])
def test_model_without_mamba_ssm_is_not_available(monkeypatch, device, reason):
    monkeypatch.setattr(dispatch, "mamba_scan", lambda: None)
    with pytest.raises(NotAvailable, match=f"^{reason}$"), kernel_choice.mamba_kernels(torch.device(device)):
        pytest.fail("mamba_ssm is not installed")
    assert dispatch._setting == "auto"
