"""The builder's subprocess: its result, how it may end, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tfanet.errors import UserError, VerificationError
from tfanet_engines import builder_process
from tfanet_engines.build import build_plan

pytestmark = pytest.mark.integration

pytest.importorskip("tensorrt_rtx")
PATIENCE = 60


def plan_files(folder):
    return sorted(path.name for path in folder.iterdir() if "plan" in path.name)


@pytest.fixture
def subprocess_runs(monkeypatch, tmp_path):
    """A function that makes the subprocess run Python code first."""

    def write(code):
        folder = tmp_path / "first"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(str(folder))

    return write


ENDS = [
    pytest.param("import ctypes; ctypes.string_at(0)", "was ended by SIGSEGV", id="crash"),
    pytest.param("import os; os.abort()", "was ended by SIGABRT", id="abort"),
    pytest.param("import os; os.kill(os.getpid(), 9)", "SIGKILL; was there too little memory", id="killed"),
    pytest.param("import os; os._exit(3)", "exit code 3 and without a result", id="quiet"),
    pytest.param(
        "import os, sys; os.write(2, b'bad luck'); os._exit(1)", "result: bad luck", id="error-output"
    ),
]


@pytest.mark.parametrize(("code", "message"), ENDS)
def test_a_subprocess_that_dies_is_one_line(tmp_path, onnx_file, subprocess_runs, code, message):
    subprocess_runs(code)
    with pytest.raises(VerificationError, match=message) as caught:
        build_plan(onnx_file, tmp_path / "model.plan")
    assert "\n" not in str(caught.value)
    assert plan_files(tmp_path) == []


def test_a_crash_in_the_middle_of_the_build_is_one_line(tmp_path, onnx_file, subprocess_runs):
    subprocess_runs("""
        import os, threading
        from tfanet_engines import builder
        def build(request, progress):
            progress("halfway", 1, 2)
            os.abort()
        builder.build = build
    """)
    with pytest.raises(VerificationError, match="was ended by SIGABRT"):
        build_plan(onnx_file, tmp_path / "model.plan", progress=True)
    assert plan_files(tmp_path) == []


def test_a_subprocess_that_does_not_start(tmp_path, onnx_file, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-such-python"))
    with pytest.raises(VerificationError, match=r"does not start: .*No such file"):
        build_plan(onnx_file, tmp_path / "model.plan")
    assert plan_files(tmp_path) == []


def test_a_full_disk_is_one_line(tmp_path, onnx_file, subprocess_runs):
    subprocess_runs("""
        import pathlib
        def full(path, data):
            raise OSError(28, "No space left on device")
        pathlib.Path.write_bytes = full
    """)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        build_plan(onnx_file, tmp_path / "model.plan")
    assert plan_files(tmp_path) == []


def test_output_of_libraries_is_ignored(tmp_path, onnx_file, subprocess_runs, capfd):
    subprocess_runs("""
        import os
        from tfanet_engines import builder
        build = builder.build
        def noisy(request, progress):
            os.write(1, b"loading\\n{")
            print("loaded")
            return build(request, progress)
        builder.build = noisy
    """)
    assert build_plan(onnx_file, tmp_path / "model.plan").size_bytes > 0
    assert capfd.readouterr().out == ""


COMMAND = """
import sys
from tfanet.console import run
from tfanet_engines import builder, builder_process
from tfanet_engines.build import build_plan
if sys.argv[3:]:
    sys.path.insert(0, sys.argv[3])
run(lambda: build_plan(sys.argv[1], sys.argv[2], progress=True))
"""
FOREVER = """
import os, pathlib, time
from tfanet_engines import builder
def build(request, progress):
    progress("endless", 1, 2)
    (pathlib.Path(__file__).parent / "process-id").write_text(str(os.getpid()))
    time.sleep(600)
builder.build = build
"""


@pytest.fixture
def endless(tmp_path, onnx_file):
    """A command that builds forever, and the process id of its builder."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FOREVER)
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, onnx_file, tmp_path / "model.plan", folder],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    file = folder / "process-id"
    wait_until(lambda: (file.exists() and file.read_text()) or command.poll() is not None)
    yield command, int(file.read_text())
    command.kill()
    command.wait()


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{number}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_the_subprocess_ends_with_its_parent(tmp_path, endless, number):
    command, process_id = endless
    assert alive(process_id)
    command.send_signal(number)
    command.communicate(timeout=PATIENCE)
    wait_until(lambda: not alive(process_id))
    assert command.returncode != 0
    assert not (tmp_path / "model.plan").exists()
    if number == signal.SIGINT:
        assert plan_files(tmp_path) == []


def test_request_and_result_are_pickled(tmp_path, onnx_file):
    from tfanet_engines import builder
    from tfanet_engines.options import BuildOptions

    request = builder.Request(
        onnx_file, "tensorrt-rtx", ("8.9", "12.0"), (), BuildOptions(batch=(2, 3, 4), workspace=64, tf32=True)
    )
    steps = []
    built, memory = builder_process.run(request, tmp_path / "a", lambda *step: steps.append(step))
    plan_bytes, expected = builder.build(request, lambda *step: None)
    assert built == expected
    assert (tmp_path / "a").stat().st_size == len(bytes(plan_bytes))
    assert any(done > 0 for _, done, _ in steps)
    assert memory > 50e6
