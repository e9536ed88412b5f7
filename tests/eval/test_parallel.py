"""An evaluation in several processes gives the metrics of one, and fails with one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_engines
import pytest
import torch
from fake_engines import rows

from tfanet.data.refer import ReferDataset
from tfanet.errors import UserError, VerificationError
from tfanet.subprocesses import run_in_subprocesses
from tfanet_eval.cli.evaluate import main
from tfanet_eval.results import read_results

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]
CODE = "import sys; from tfanet_eval.cli.evaluate import main; sys.argv[0] = 'tfanet-eval'; main()"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]


def summary(path: str) -> dict:
    """The JSON of a run without latency and number of processes."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    for split in content["splits"].values():
        del split["latency"]
    return content | {"processes": None}


def is_running(process: int) -> bool:
    """Whether the process exists; for a negative id, any process of the group."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def under_torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [*TORCHRUN, sys.executable, "-c", CODE, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_several_processes_give_the_records_of_one_also_when_resumed(command, small_onnx, shapes_root):
    def evaluated(name, *options):
        arguments = ("--engine", small_onnx, "--data", shapes_root, "--split", "val", "--split", "testA")
        return command(
            main, *arguments, "--batch", 2, "--results", f"{name}.jsonl", "--json", f"{name}.json", *options
        )

    assert evaluated("one").code == 0
    done = evaluated("two", "--workers", 2)
    assert done.code == 0, done.err
    assert "times with 2 processes at once" in done.out
    assert "in 2 processes; per expression" in done.out
    assert (rows("two.jsonl"), summary("two.json")) == (rows("one.jsonl"), summary("one.json"))
    assert read_results("two.jsonl").environment["processes"] == 2
    lines = Path("one.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("cut.jsonl").write_text("".join(lines[:6])[:-40], encoding="utf-8")
    done = evaluated("cut", "--workers", 2, "--resume")
    assert done.code == 0, done.err
    assert (rows("cut.jsonl"), summary("cut.json")) == (rows("one.jsonl"), summary("one.json"))


def test_ctrl_c_ends_all_processes_and_the_run_can_be_resumed(command, checkpoint, shapes_root):
    common = ["--engine", str(checkpoint), "--data", str(shapes_root), "--image-size", "384"]
    assert command(main, *common, "--results", "full.jsonl").code == 0
    arguments = [*common, "--results", "stopped.jsonl"]
    # Background processes of a shell ignore Ctrl-C, and subprocesses inherit that.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {CODE}"
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--workers", "2"],
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    file = Path("stopped.jsonl")
    while child.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < 3):
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the whole process group
    _, err = child.communicate()
    assert child.returncode == 130
    assert "Traceback" not in err
    deadline = time.monotonic() + 20
    while is_running(-child.pid) and time.monotonic() < deadline:
        time.sleep(0.05)  # Python's own resource tracker ends a moment after its process
    assert not is_running(-child.pid)
    done = command(main, *arguments, "--resume")
    assert done.code == 0, done.err
    assert rows("stopped.jsonl") == rows("full.jsonl")


FAILURES = [
    pytest.param(
        "exits", VerificationError, "process 2 of 2 ended with exit code 7 and without a result", id="exits"
    ),
    pytest.param("is killed", VerificationError, "process 2 of 2 was ended by SIGKILL", id="killed"),
    pytest.param("raises", UserError, "no such GPU", id="raises"),
]


@pytest.mark.parametrize(("how", "error", "message"), FAILURES)
def test_failure_of_one_process_ends_the_others(tmp_path, how, error, message):
    file, steps = tmp_path / "process", []
    began = time.monotonic()
    with pytest.raises(error, match=message):
        run_in_subprocesses(fake_engines.waits_or_fails, [("waits", file), (how, file)], steps.append)
    assert time.monotonic() - began < 50
    assert not is_running(int(file.read_text()))
    assert steps == [3]


def test_torchrun_divides_the_evaluation_of_a_checkpoint(command, checkpoint, shapes_root):
    common = ["--engine", checkpoint, "--batch", "2", "--data", shapes_root]
    one = command(main, *common, "--results", "one.jsonl", "--json", "one.json")
    assert one.code == 0, one.err
    done = under_torchrun(*common, "--results", "two.jsonl", "--json", "two.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote two.jsonl") == 1
    assert "times with 2 processes at once" in done.stdout
    assert (rows("two.jsonl"), summary("two.json")) == (rows("one.jsonl"), summary("one.json"))


@pytest.mark.slow
def test_error_of_one_torchrun_process_is_printed_once_and_ends_all(checkpoint, shapes_root, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(shapes_root, damaged)
    *_, last = ReferDataset(damaged, "refcoco", "val")
    last.image_path.write_bytes(b"not an image")
    done = under_torchrun("--engine", checkpoint, "--data", damaged)
    assert done.returncode != 0
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert str(last.image_path) in done.stderr
    assert "mIoU" not in done.stdout


ERRORS = [
    pytest.param(["--engine", "m.plan", "--workers", 2], {}, "--workers divides the cores", id="plan"),
    pytest.param(["--engine", "m.safetensors", "--workers", 2], {}, "hide the GPU", id="gpu"),
    pytest.param(["--workers", 2], {"WORLD_SIZE": "2", "RANK": "0"}, "leave --workers out", id="torchrun"),
    pytest.param(
        ["--engine", "m.onnx"], {"WORLD_SIZE": "2", "RANK": "0"}, "for others there is --workers", id="onnx"
    ),
]


@pytest.mark.parametrize(("arguments", "variables", "message"), ERRORS)
def test_unsupported_division_is_an_error(command, monkeypatch, shapes_root, arguments, variables, message):
    for name in ("m.plan", "m.onnx", "m.safetensors"):
        Path(name).write_bytes(b"a model")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = command(main, *arguments, "--data", shapes_root)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
