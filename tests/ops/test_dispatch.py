"""The choice of the scan kernels, with a fake mamba_ssm in place of the package."""

import importlib
import sys
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from tfanet.errors import UserError
from tfanet.ops import cross_selective_scan, dispatch, native, selective_scan, use_scan_kernel
from tfanet.ops.cross_selective_scan import cross_selective_scan_backward, cross_selective_scan_loop
from tfanet.ops.selective_scan import selective_scan_backward, selective_scan_loop
from tfanet.ops.traversals import scan_traversals
from tfanet.training.cli import app as train_app

BATCH, GROUPS, CHANNELS, SIDE, RANK = 1, 4, 3, 5, 2
ROWS, LENGTH = GROUPS * CHANNELS, SIDE * SIDE


@pytest.fixture(autouse=True)
def _default_setting():
    yield
    use_scan_kernel("auto")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scan_inputs():
    weights = [normal(BATCH, GROUPS, 1, LENGTH, seed=seed) for seed in (2, 3)]
    u, delta = normal(BATCH, ROWS, LENGTH), normal(BATCH, ROWS, LENGTH, seed=1)
    return [u, delta, -torch.ones(ROWS, 1), *weights, normal(ROWS, seed=4), normal(ROWS, seed=5) - 4]


@pytest.fixture
def cross_inputs():
    x, p = normal(BATCH, SIDE, SIDE, CHANNELS), normal(BATCH, SIDE, SIDE, GROUPS * (RANK + 2), seed=1)
    weight = normal(ROWS, RANK, seed=2) * RANK**-0.5
    return [x, p, weight, -torch.ones(ROWS, 1), normal(ROWS, seed=4), normal(ROWS, seed=5) - 4]


class FakeScan(torch.autograd.Function):
    """As in mamba_ssm: an autograd function."""

    dtypes: set = set()  # noqa: RUF012

    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        FakeScan.dtypes |= {x.dtype for x in inputs}
        return selective_scan_loop(*inputs)

    @staticmethod
    def backward(ctx, dy):
        return selective_scan_backward(dy, *ctx.saved_tensors)


@pytest.fixture
def mamba(monkeypatch):
    """A fake mamba_ssm with the real one's signature; gives the list of its `delta_softplus` arguments."""
    softplus = []

    def selective_scan_fn(u, delta, A, B, C, D, z=None, delta_bias=None, delta_softplus=False):
        softplus.append(delta_softplus)
        return FakeScan.apply(u, delta, A, B, C, D, delta_bias)

    names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].selective_scan_fn = selective_scan_fn
    monkeypatch.setattr(FakeScan, "dtypes", set())
    return softplus


def assert_gradients_close(actual, expected):
    for ours, right in zip(actual, expected, strict=True):
        assert ours.dtype == right.dtype
        torch.testing.assert_close(ours, right, rtol=2e-3, atol=2e-3 * right.abs().max().item())


def test_mamba_ssm_is_called_with_its_own_signature(scan_inputs, mamba):
    half = [x.half() for x in scan_inputs]
    scan = dispatch.mamba_scan()
    torch.testing.assert_close(scan(*half), selective_scan(*half), rtol=1e-5, atol=1e-5)
    assert set(mamba) == {True}
    assert FakeScan.dtypes == {torch.float32}


def test_gradients_of_mamba_ssm_within_an_operation(scan_inputs, mamba):
    """PyTorch runs an operation's kernels without recording: `gradients_of` must enable autograd."""
    half = [x.half() for x in scan_inputs]
    dy = normal(*half[0].shape, seed=1)
    expected = selective_scan_backward(dy, *half)
    scan = dispatch.mamba_scan()

    @torch.library.custom_op("tfanet_test::gradients", mutates_args=())
    def gradients(dy: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(dispatch.gradients_of(scan, dy, *inputs))

    actual = gradients(dy, half)
    assert set(mamba) == {True}
    assert_gradients_close(actual, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_mamba_ssm_computes_both_scans(scan_inputs, cross_inputs, mamba, mode):
    """The functions that PyTorch calls for CUDA tensors, on CPU tensors."""
    use_scan_kernel("mamba-ssm")
    expected = selective_scan(*scan_inputs), cross_selective_scan(*cross_inputs)
    one, two = (importlib.import_module(f"tfanet.ops.{name}selective_scan") for name in ("", "cross_"))
    with mode():
        torch.testing.assert_close(one._on_gpu(*scan_inputs), expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(two._on_gpu(*cross_inputs), expected[1], rtol=1e-4, atol=1e-4)
    assert mamba == [True, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mamba_ssm_computes_the_2d_scan_of_half_tensors_in_fp32(cross_inputs, mamba, dtype):
    use_scan_kernel("mamba-ssm")
    half = [x.to(dtype) for x in cross_inputs[:3]] + cross_inputs[3:]
    expected = cross_selective_scan_loop(*(x.double() for x in half))
    module = importlib.import_module("tfanet.ops.cross_selective_scan")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = module._on_gpu(*half)
    assert actual.dtype == torch.float32
    assert (actual.double() - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert FakeScan.dtypes == {torch.float32}


def test_mamba_ssm_computes_both_gradients(scan_inputs, cross_inputs, mamba):
    use_scan_kernel("mamba-ssm")
    one, two = (importlib.import_module(f"tfanet.ops.{name}selective_scan") for name in ("", "cross_"))
    dy = normal(*scan_inputs[0].shape, seed=6)
    expected = selective_scan_backward(dy, *scan_inputs)
    assert_gradients_close(one._backward_on_gpu(dy, *scan_inputs), expected)
    dy = normal(*cross_inputs[0].shape, seed=6)
    expected = cross_selective_scan_backward(dy, *cross_inputs)
    assert_gradients_close(two._backward_on_gpu(dy, *cross_inputs), expected)
    assert mamba == [True, True]


@pytest.mark.parametrize("setting", dispatch.SCAN_KERNELS)
def test_fp64_and_empty_tensors_take_the_vectorised_code(setting, mamba, monkeypatch):
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    use_scan_kernel(setting)
    assert dispatch.gpu_kernels(torch.ones(1, dtype=torch.float64)) is None
    assert dispatch.gpu_kernels(torch.ones(0)) is None


def test_without_mamba_ssm_there_is_no_scan(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    assert dispatch.mamba_scan() is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "unknown scan kernel 'cuda'; known: auto, triton, mamba-ssm"),
        ("triton", "Triton is not installed"),
        ("mamba-ssm", r"mamba_ssm is missing or does not load; install it: pip install 'tfanet\[mamba\]'"),
    ],
)
def test_missing_or_unknown_kernel_is_an_error_in_one_line(name, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    with pytest.raises(UserError, match=message) as error:
        use_scan_kernel(name)
    assert "\n" not in str(error.value)
    assert use_scan_kernel("auto") == "auto"  # unchanged


def test_the_setting_before_is_returned(mamba):
    assert use_scan_kernel("mamba-ssm") == "auto"
    assert use_scan_kernel("auto") == "mamba-ssm"


def test_traversals_equal_the_2d_scan(cross_inputs):
    torch.testing.assert_close(
        scan_traversals(selective_scan_loop, *cross_inputs), cross_selective_scan(*cross_inputs),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "setting", "triton", "library", "text"),
    [
        ("cpu", "auto", True, None, "scans vectorised"),
        ("cpu", "auto", True, "_native.so", "scans compiled"),
        ("cpu", "mamba-ssm", True, "_native.so", "scans compiled"),
        ("cuda", "auto", False, "_native.so", "scans vectorised"),
        ("cuda", "auto", True, None, "scans by Triton"),
        ("cuda", "triton", True, None, "scans by Triton"),
        ("cuda", "mamba-ssm", True, None, "scans by mamba_ssm"),
        ("cuda", "mamba-ssm", False, None, "scans by mamba_ssm"),
    ],
)
def test_description_of_the_kernels(monkeypatch, mamba, device, setting, triton, library, text):
    if device == "cuda" and triton and setting != "mamba-ssm":
        pytest.importorskip("triton")
    monkeypatch.setattr(dispatch, "has_triton", lambda: triton)
    monkeypatch.setattr(native, "library", lambda: library)
    use_scan_kernel(setting)
    assert dispatch.scans_by(device) == text


def test_training_rejects_a_missing_kernel_before_it_starts(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.setattr("tfanet.training.run.TFANet", lambda config: pytest.fail("a model was built"))
    arguments = ["--scan-kernel", "mamba-ssm", "--out", str(tmp_path / "run")]
    with pytest.raises(UserError, match="mamba_ssm is missing"):
        CliRunner().invoke(train_app, arguments, catch_exceptions=False)
