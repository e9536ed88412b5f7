"""The list of built plans: other plans are only opened with `trust=True`, and only the user may write it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from small_engines import write_sidecar

from tfanet.errors import UserError
from tfanet.files import sha256
from tfanet_engines import build_plan, open_engine, run_plan, trust

DIGEST, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "tfanet" / "built-plans.sha256"


def test_built_plans_are_recorded_in_a_file_that_only_the_user_may_write(ledger):
    assert trust.ledger_path() == ledger
    assert not trust.built_here(DIGEST)
    for digest in (DIGEST, OTHER, DIGEST):
        trust.remember(digest)
    assert trust.built_here(DIGEST)
    assert trust.built_here(OTHER)
    assert not trust.built_here("0" * 64)
    assert ledger.read_text() == f"{DIGEST}\n{OTHER}\n"
    assert ledger.stat().st_mode & 0o777 == 0o600
    assert ledger.parent.stat().st_mode & 0o777 == 0o700


def test_concurrent_processes_lose_no_entry(ledger):
    code = (
        "import sys\nfrom tfanet_engines.trust import remember\n"
        "for i in range(20): remember(f'{sys.argv[1]}{i:063x}')"
    )
    builders = [subprocess.Popen([sys.executable, "-c", code, digit]) for digit in "abc"]
    assert [builder.wait(60) for builder in builders] == [0, 0, 0]
    assert len(set(ledger.read_text().splitlines())) == 60


def test_a_plan_that_was_not_built_here_is_refused_first(plan, ledger, monkeypatch):
    monkeypatch.setattr(run_plan, "gpu_for", lambda file, sidecar: pytest.fail("was not refused"))
    ledger.unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"not built by you.* a plan is code: .*--fp16.*--trust"):
        open_engine(plan)


def test_trust_opens_a_plan_that_was_not_built_here(plan, ledger, monkeypatch):
    def next_step(file, sidecar):
        raise UserError("next step")

    monkeypatch.setattr(run_plan, "gpu_for", next_step)
    ledger.unlink(missing_ok=True)
    with pytest.raises(UserError, match="next step"):
        open_engine(plan, trust=True)


def test_an_altered_plan_with_a_new_sidecar_is_refused(plan, small_config):
    """A sidecar can be altered like its plan."""
    plan.write_bytes(plan.read_bytes() + b"!")
    write_sidecar(plan, small_config)
    with pytest.raises(UserError, match="not built by you"):
        open_engine(plan)


def test_a_built_plan_is_recorded(tmp_path, onnx_file):
    pytest.importorskip("tensorrt_rtx")
    report = build_plan(onnx_file, tmp_path / "model.plan")
    assert trust.built_here(sha256(report.plan))


INVALID = [
    pytest.param(lambda p: p.write_text("abc\n"), "not a list of SHA-256", id="not-a-digest"),
    pytest.param(lambda p: p.write_bytes(b"\xff\xfe"), "cannot read", id="not-text"),
    pytest.param(lambda p: p.chmod(0o620), "writable by others", id="group-writable"),
    pytest.param(
        lambda p: (p.rename(p.with_name("x")), p.symlink_to("x")), "not a regular file", id="a-link"
    ),
    pytest.param(lambda p: (p.unlink(), p.mkdir()), "not a regular file", id="a-folder"),
]


@pytest.mark.parametrize(("damage", "message"), INVALID)
def test_an_invalid_list_is_refused(ledger, damage, message):
    trust.remember(DIGEST)
    damage(ledger)
    for use in (lambda: trust.built_here(DIGEST), lambda: trust.remember(OTHER), trust.require_usable):
        with pytest.raises(UserError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_another_users_list_is_refused(ledger, monkeypatch):
    trust.remember(DIGEST)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match="another user"):
        trust.built_here(DIGEST)


def test_a_build_that_could_not_be_recorded_does_not_start(tmp_path, onnx_file, ledger, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("tfanet_engines.build.read_onnx", lambda path: pytest.fail("started"))
    ledger.parent.parent.write_text("a file in the folder's place")
    with pytest.raises(UserError, match="cannot write"):
        build_plan(onnx_file, tmp_path / "model.plan")
