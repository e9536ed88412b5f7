"""The choice of the scan's kernel, with stand-ins for what needs a GPU."""

from __future__ import annotations

import sys
import time
from types import ModuleType

import pytest
import torch

from tfanet.ops import dispatch, selective_scan
from tfanet.ops.selective_scan import selective_scan_loop


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(dispatch, "TRIAL", (1, 2, 3, 20))
    return dispatch.trial_inputs("cpu", torch.float32)


def slow(*inputs):
    time.sleep(0.02)
    return selective_scan(*inputs)


def wrong(*inputs):
    return selective_scan(*inputs) + 1


@pytest.mark.parametrize(
    ("scans", "chosen"),
    [
        ({"ours": selective_scan, "theirs": slow}, "ours"),
        ({"ours": slow, "theirs": selective_scan}, "theirs"),
        ({"ours": slow, "theirs": wrong}, "ours"),
    ],
    ids=["ours-is-faster", "theirs-is-faster", "theirs-is-wrong"],
)
def test_the_fastest_right_one_is_taken(small, scans, chosen):
    assert dispatch.fastest(scans, small) == chosen


def test_the_cpu_has_the_vectorised_path():
    assert dispatch.scan_kernel("cpu") == "vectorised"


def test_mamba_ssm_is_called_with_its_own_signature(small, monkeypatch):
    given = {}

    def selective_scan_fn(u, delta, A, B, C, D, z=None, delta_bias=None, delta_softplus=False):
        given.update(softplus=delta_softplus, dtypes={x.dtype for x in (u, delta, A, B, C, D, delta_bias)})
        return selective_scan_loop(u, delta, A, B, C, D, delta_bias).to(u.dtype)

    package, ops, interface = (
        ModuleType(name) for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    )
    interface.selective_scan_fn = selective_scan_fn
    for module in (package, ops, interface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    scan = dispatch.mamba_scan()
    half = [x.half() for x in small]
    torch.testing.assert_close(scan(*half), selective_scan(*half), rtol=1e-5, atol=1e-5)
    assert given == {"softplus": True, "dtypes": {torch.float32}}


def test_without_mamba_ssm_there_is_none_to_choose(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    assert dispatch.mamba_scan() is None
