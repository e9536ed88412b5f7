"""The compiled recurrence and its gradients compared with the FP64 path, which other tests check."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tfanet.ops import native, recurrence

SOURCES = Path(native.__file__).with_name("csrc")
pytestmark = pytest.mark.skipif(
    native.library() is None, reason="tfanet was installed without a C++ compiler"
)
CASES = [
    # batch, L, M, N, shift of raw, reverse
    pytest.param(1, 1, 1, 1, 0.0, False, id="one-token"),
    pytest.param(1, 17, 3, 16, 0.0, True, id="16-states"),
    pytest.param(2, 56, 3, 1, -25.0, False, id="tiny-steps"),
    pytest.param(1, 56, 3, 2, 60.0, True, id="large-steps"),
    pytest.param(2, 33, 31, 2, 0.0, False, id="31-channels"),
    pytest.param(2, 33, 32, 1, -4.0, True, id="32-channels"),
    pytest.param(3, 65, 70, 2, 0.0, True, id="70-channels"),
    pytest.param(1, 3000, 34, 1, -4.0, False, id="3000-tokens"),
]


def make_inputs(batch, length, channels, states, shift):
    """out (or dout), raw, u, A, B, C; the first three with gaps between their tokens."""
    rng = torch.Generator().manual_seed(0)
    padded = torch.randn(3, batch, length, channels + 5, generator=rng)
    out, raw, u = (part[..., 2 : channels + 2] for part in padded)
    A = -torch.randn(channels, states, generator=rng).exp()
    B, C = torch.randn(2, batch, length, states, generator=rng)
    return out, raw + shift, u, A, B, C


def double(tensors):
    return [x.double() for x in tensors]


def assert_close(actual, expected):
    assert actual.dtype == torch.float32
    assert (actual.double() - expected).abs().max() <= 4e-6 * max(expected.abs().max().item(), 1e-30)


@pytest.mark.parametrize(("batch", "length", "channels", "states", "shift", "reverse"), CASES)
def test_scan_equals_the_vectorised_scan(batch, length, channels, states, shift, reverse):
    out, *inputs = make_inputs(batch, length, channels, states, shift)
    assert native.scans(inputs[1], states)
    expected = out.double()
    recurrence.scan_into(expected, *double(inputs), reverse=reverse)
    recurrence.scan_into(out, *inputs, reverse=reverse)
    assert_close(out, expected)


@pytest.mark.parametrize(("batch", "length", "channels", "states", "shift", "reverse"), CASES)
def test_gradients_equal_the_vectorised_ones(batch, length, channels, states, shift, reverse):
    inputs = make_inputs(batch, length, channels, states, shift)
    actual = recurrence.scan_gradients(*inputs, reverse=reverse)
    expected = recurrence.scan_gradients(*double(inputs), reverse=reverse)
    for name, one, other in zip(actual._fields, actual, expected, strict=True):
        assert one.shape == other.shape, name
        assert_close(one, other)


def test_result_does_not_depend_on_threads():
    inputs = make_inputs(3, 40, 70, 2, 0.0)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(recurrence.scan_gradients(*inputs))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("u", "states"),
    [
        (torch.zeros(1, 2, 3, dtype=torch.float64), 1),
        (torch.zeros(1, 2, 3, dtype=torch.float16), 1),
        (torch.zeros(1, 0, 3), 1),
        (torch.zeros(1, 2, 3), native.MAX_STATES + 1),
        (torch.zeros(1, 2, 3, device="meta"), 1),
    ],
    ids=["fp64", "fp16", "empty", "17-states", "no-memory"],
)
def test_unsupported_inputs(u, states):
    assert not native.scans(u, states)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_code_without_avx2(tmp_path, monkeypatch):
    """The same source without AVX2, and with the compiler's checks for undefined behaviour."""
    path = tmp_path / "baseline.so"
    flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-pthread", "-Wno-psabi", "-DTFANET_BASELINE"]
    checks = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["g++", *flags, *checks, str(SOURCES / "scan.cpp"), "-o", str(path)], check=True)
    older = ctypes.CDLL(str(path))
    monkeypatch.setattr(native, "_kernel", lambda name: getattr(older, f"tfanet_{name}"))
    test_scan_equals_the_vectorised_scan(2, 33, 41, 2, 0.0, True)
    test_gradients_equal_the_vectorised_ones(2, 33, 41, 2, 0.0, False)


def test_an_older_library_uses_the_vectorised_code(monkeypatch):
    monkeypatch.setattr(native, "_kernel", lambda name: None)
    assert not native.scans(torch.zeros(1, 2, 3), 1)
