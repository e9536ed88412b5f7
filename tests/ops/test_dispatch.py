"""The choice of the scans' kernels, with stand-ins for what needs a GPU."""

import sys
from importlib import import_module
from types import ModuleType

import pytest
import torch

from tfanet.ops import cross_selective_scan, dispatch, native, selective_scan
from tfanet.ops.selective_scan import selective_scan_backward, selective_scan_loop
from tfanet.ops.traversals import scan_traversals


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(dispatch, "TRIAL", (1, 4, 3, 5))
    return dispatch.trial_inputs("cpu", torch.float32)


class Clock:
    """A clock that only slow kernels move, so that a busy machine changes nothing."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(dispatch, "time", CLOCK)


def slow(*inputs):
    CLOCK.now += 1
    return selective_scan(*inputs)


def wrong(*inputs):
    return selective_scan(*inputs) + 1


def undefined(*inputs):
    return selective_scan(*inputs) * torch.nan


@pytest.mark.parametrize(
    ("scans", "chosen"),
    [
        ({"ours": selective_scan, "theirs": slow}, "ours"),
        ({"ours": slow, "theirs": selective_scan}, "theirs"),
        ({"ours": slow, "theirs": wrong}, "ours"),
        ({"ours": slow, "theirs": undefined}, "ours"),
        ({"ours": slow}, "ours"),
    ],
    ids=["ours-is-faster", "theirs-is-faster", "theirs-is-wrong", "theirs-is-nan", "no-rival"],
)
def test_the_fastest_right_one_is_taken(small, scans, chosen):
    kernel = dispatch.fastest(scans, small[0])
    assert (kernel.name, kernel.run) == (chosen, scans[chosen])


def test_one_wrong_gradient_is_enough_to_be_left_out(small):
    inputs = (small[0][0], *small[0])

    def right(*inputs):
        CLOCK.now += 1
        return selective_scan_backward(*inputs)

    def almost(*inputs):
        *others, dbias = selective_scan_backward(*inputs)
        return *others, dbias + dbias.abs().max() / 100

    assert dispatch.fastest({"right": right, "almost": almost}, inputs).name == "right"
    same = {"right": right, "same": selective_scan_backward}
    assert dispatch.fastest(same, inputs).name == "same"


class Rival(torch.autograd.Function):
    """`mamba_ssm`'s way: a function with a gradient of its own, in FP32."""

    dtypes: set = set()  # noqa: RUF012

    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        Rival.dtypes |= {x.dtype for x in inputs}
        return selective_scan_loop(*inputs)

    @staticmethod
    def backward(ctx, dy):
        return selective_scan_backward(dy, *ctx.saved_tensors)


@pytest.fixture
def mamba(monkeypatch):
    """A `mamba_ssm` with the signature of the real one; gives the list of what it was told."""
    told = []

    def selective_scan_fn(u, delta, A, B, C, D, z=None, delta_bias=None, delta_softplus=False):
        told.append(delta_softplus)
        return Rival.apply(u, delta, A, B, C, D, delta_bias)

    names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].selective_scan_fn = selective_scan_fn
    monkeypatch.setattr(Rival, "dtypes", set())
    return told


def test_mamba_ssm_is_called_with_its_own_signature(small, mamba):
    half = [x.half() for x in small[0]]
    scan = dispatch.mamba_scan()
    torch.testing.assert_close(scan(*half), selective_scan(*half), rtol=1e-5, atol=1e-5)
    assert set(mamba) == {True}
    assert Rival.dtypes == {torch.float32}


def test_mamba_ssms_gradients_within_an_operation(small, mamba):
    """PyTorch runs an operation's kernels without recording: its autograd has to be asked for."""
    half = [x.half() for x in small[0]]
    dy = torch.randn(half[0].shape, generator=torch.Generator().manual_seed(1))
    expected = selective_scan_backward(dy, *half)
    scan = dispatch.mamba_scan()

    @torch.library.custom_op("tfanet_test::gradients", mutates_args=())
    def gradients(dy: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(dispatch.gradients_of(scan, dy, *inputs))

    found = gradients(dy, half)
    assert set(mamba) == {True}
    for ours, right in zip(found, expected, strict=True):
        assert ours.dtype == right.dtype
        torch.testing.assert_close(ours, right, rtol=2e-3, atol=2e-3 * right.abs().max().item())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_kernel_is_chosen_by_itself_and_once(small, mamba, monkeypatch, mode):
    """Stand-ins for ours: a slow scan and a slow 2-D scan beside gradients that nothing beats."""
    pytest.importorskip("triton")
    ours, fused = (import_module(f"tfanet.ops.{name}selective_scan_triton") for name in ("", "cross_"))

    def slow_cross(*inputs):
        CLOCK.now += 1
        return cross_selective_scan(*inputs)

    monkeypatch.setattr(ours, "selective_scan_forward", slow)
    monkeypatch.setattr(ours, "selective_scan_backward", selective_scan_backward)
    monkeypatch.setattr(fused, "cross_selective_scan_forward", slow_cross)
    dispatch.gpu_kernels.cache_clear()
    with mode():
        chosen = dispatch.gpu_kernels("cpu")
        called = len(mamba)
        assert dispatch.gpu_kernels("cpu") is chosen
    dispatch.gpu_kernels.cache_clear()
    assert [kernel.name for kernel in chosen] == ["mamba_ssm", "Triton", "traversals"]
    assert called == len(mamba)
    found = chosen.cross_scan.run(*small[1])
    torch.testing.assert_close(found, cross_selective_scan(*small[1]), rtol=1e-4, atol=1e-4)


def test_without_mamba_ssm_there_is_none_to_choose(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    assert dispatch.mamba_scan() is None


def test_traversals_are_the_scan_of_two_dimensions(small):
    torch.testing.assert_close(
        scan_traversals(selective_scan_loop, *small[1]), cross_selective_scan(*small[1]), rtol=1e-4, atol=1e-5
    )


KERNELS = dispatch.GpuKernels(
    dispatch.Kernel("mamba_ssm", slow), dispatch.Kernel("Triton", slow), dispatch.Kernel("fused", slow)
)


@pytest.mark.parametrize(
    ("device", "triton", "library", "said"),
    [
        ("cpu", True, None, "scans vectorised"),
        ("cpu", True, "_native.so", "scans compiled"),
        ("cuda", False, "_native.so", "scans vectorised"),
        ("cuda", True, None, "scans by mamba_ssm, their gradients by Triton, 2-D scans fused"),
    ],
)
def test_the_choice_in_words(monkeypatch, device, triton, library, said):
    monkeypatch.setattr(dispatch, "has_triton", lambda: triton)
    monkeypatch.setattr(native, "library", lambda: library)
    monkeypatch.setattr(dispatch, "gpu_kernels", lambda device_type: KERNELS)
    assert dispatch.scans_by(device) == said
