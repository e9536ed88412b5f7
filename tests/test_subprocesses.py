"""Subprocesses: results in order, messages, a time limit, and one line for a failed subprocess."""

from __future__ import annotations

import os
import time

import pytest

from tfanet.errors import UserError, VerificationError
from tfanet.subprocesses import run_in_subprocess, run_in_subprocesses

pytestmark = pytest.mark.integration


def square(job, send):
    send(("started", job))
    os.write(1, b"output of a library is not a message")
    return job * job


def fail(job, send):
    raise job


def crash(job, send):
    os.write(2, b"out of luck")
    os._exit(job)


def crash_with_a_long_error(job, send):
    os.write(2, b"x" * 1000 + b" the end")
    os._exit(3)


def give_a_function(job, send):
    return lambda: 0


def first_waits_for_second(job, send):
    """Jobs are (number, file); job 1 writes the file, job 0 waits for it."""
    number, file = job
    while number == 0 and not file.exists():
        time.sleep(0.01)
    send(number)
    file.touch()
    return number


def sleep(job, send):
    send(os.getpid())
    time.sleep(60)


def test_results_come_in_order_with_every_message(capfd):
    messages = []
    assert run_in_subprocesses(square, [3, 1, 2], messages.append) == [9, 1, 4]
    assert sorted(messages) == [("started", 1), ("started", 2), ("started", 3)]
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("error", [UserError("no such file"), VerificationError("0.1 is above 0.01")])
def test_user_and_verification_errors_are_raised_in_the_parent(error):
    with pytest.raises(type(error), match=str(error)):
        run_in_subprocess(fail, error)


def test_other_failures_are_one_line_with_the_end_of_stderr():
    with pytest.raises(VerificationError, match=r"^the job ended with exit code 3 .* result: out of luck$"):
        run_in_subprocess(crash, 3, name="the job")
    with pytest.raises(VerificationError, match="ValueError: bad"):
        run_in_subprocess(fail, ValueError("bad"))


def test_a_long_stderr_is_cut():
    with pytest.raises(VerificationError, match=r"result: x+ the end$") as error:
        run_in_subprocess(crash_with_a_long_error, None)
    assert len(str(error.value)) < 400


def test_a_result_that_cannot_be_pickled_is_an_error():
    with pytest.raises(VerificationError, match=r"ended with exit code 1 and without a result: .*pickle"):
        run_in_subprocess(give_a_function, None)


def test_results_come_in_order_if_a_later_job_ends_first(tmp_path):
    messages, file = [], tmp_path / "file"
    results = run_in_subprocesses(first_waits_for_second, [(0, file), (1, file)], messages.append, timeout=60)
    assert results == [0, 1]
    assert messages == [1, 0]


def test_a_time_limit_ends_the_subprocess():
    messages, begun = [], time.monotonic()
    with pytest.raises(VerificationError, match=r"^the subprocess was stopped after 3 s"):
        run_in_subprocess(sleep, None, messages.append, timeout=3)
    assert time.monotonic() - begun < 30
    with pytest.raises(ProcessLookupError):
        os.kill(messages[0], 0)


def test_an_exception_in_a_callback_ends_all_subprocesses():
    processes = []

    def interrupt(process):
        processes.append(process)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_subprocesses(sleep, [None, None], interrupt)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_errors_are_shown_on_request(capfd):
    with pytest.raises(VerificationError, match=r"^the job ended with exit code 3 and without a result$"):
        run_in_subprocess(crash, 3, name="the job", show_errors=True)
    assert "out of luck" in capfd.readouterr().err


def test_nothing_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "pickle.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert run_in_subprocess(square, 3) == 9
