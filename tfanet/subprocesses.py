"""Run functions in subprocesses: results, progress messages, or the first failure as one line.

Each job runs in a new interpreter, `python -m tfanet.subprocesses`, which reads the job from its standard
input and writes messages to its standard output, both as pickles. Not `multiprocessing`, which imports the
caller's main module again and so needs a guard in every script that uses it. A subprocess exits when its
standard input closes, so it never outlives its parent.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import IO, Any, TypeVar

from tfanet.errors import UserError, VerificationError

T = TypeVar("T")
J = TypeVar("J")
OnMessage = Callable[[Any], None]

LONGEST_TAIL = 300
"""Characters shown of a failed subprocess's standard error."""


def run_in_subprocess(
    function: Callable[[J, OnMessage], T],
    job: J,
    on_message: OnMessage = lambda message: None,
    *,
    timeout: float | None = None,
    name: str = "the subprocess",
    show_errors: bool = False,
) -> T:
    """`function(job, send)` in a subprocess; see `run_in_subprocesses`."""
    return run_in_subprocesses(
        function, [job], on_message, timeout=timeout, names=[name], show_errors=show_errors
    )[0]


def run_in_subprocesses(
    function: Callable[[J, OnMessage], T],
    jobs: Sequence[J],
    on_message: OnMessage = lambda message: None,
    *,
    timeout: float | None = None,
    names: Sequence[str] = (),
    show_errors: bool = False,
) -> list[T]:
    """`function(job, send)` for each job, all at once, each in its own subprocess; the results in order.

    Args:
        function: a module-level function of an importable module; job and result are pickled. What it passes
            to `send` is passed to `on_message`, one message at a time.
        timeout: seconds for each job; None is no limit.
        names: what messages call the subprocesses; by default "process 1 of 4".
        show_errors: let subprocesses write to this process's standard error: progress bars, warnings,
            tracebacks. Otherwise the end of it is part of the message if one fails.

    Raises the first `UserError` or `VerificationError` of a job, and `VerificationError` for a subprocess
    that ends without a result or takes too long. No subprocess runs any more when this returns or raises,
    also on Ctrl-C.
    """
    names = names or [f"process {number + 1} of {len(jobs)}" for number in range(len(jobs))]
    one_at_a_time = threading.Lock()

    def deliver(message: Any) -> None:
        with one_at_a_time:
            on_message(message)

    running: list[_Subprocess] = []
    try:
        for name in names:
            running.append(_Subprocess(name, show_errors))
        with ThreadPoolExecutor(len(running)) as pool:
            futures = [
                pool.submit(process.run, function, job, deliver, timeout)
                for process, job in zip(running, jobs, strict=True)
            ]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                if failed := [future for future in done if future.exception()]:
                    failed[0].result()
            except BaseException:
                for process in running:
                    process.kill()
                raise
        return [future.result() for future in futures]
    finally:
        for process in running:
            process.close()


class _Subprocess:
    """A started interpreter that waits for its job."""

    def __init__(self, name: str, show_errors: bool) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tfanet.subprocesses"],  # -P: no imports from the current folder
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if show_errors else self._errors,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C reaches the parent only, which kills its subprocesses
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise VerificationError(f"{name} does not start: {error}") from error

    def run(
        self, function: Callable[[J, OnMessage], T], job: J, on_message: OnMessage, timeout: float | None
    ) -> T:
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(timeout, stop) if timeout else None
        if timer:
            timer.start()
        try:
            kind, value = self._converse(function, job, on_message)
        finally:
            if timer:
                timer.cancel()
        if kind == "error":
            raise value
        if kind == "result":
            return value
        self._process.wait()
        how = f"was stopped after {timeout:g} s" if late.is_set() else how_it_ended(self._process.returncode)
        raise VerificationError(f"{self.name} {how}{self._error_tail()}")

    def _converse(self, function: Callable[..., Any], job: Any, on_message: OnMessage) -> tuple[str, Any]:
        """The kind and value of the final message; kind `none` if the subprocess ended without one.

        Its input stays open until then, because the subprocess ends with it.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump((function.__module__, function.__qualname__, job), stdin)
            stdin.flush()
            while True:
                kind, value = pickle.load(stdout)
                if kind != "message":
                    return kind, value
                on_message(value)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            return "none", None

    def _error_tail(self) -> str:
        self._errors.seek(0)
        text = " ".join(self._errors.read().decode(errors="replace").split())
        return f": {text[-LONGEST_TAIL:]}" if text else ""

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Wait for the process to exit; call after a result or `kill`."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue
        self._process.wait()
        self._errors.close()


def how_it_ended(code: int) -> str:
    """Describes the exit code of a process that ended without a result; negative codes are signals."""
    if code >= 0:
        return f"ended with exit code {code} and without a result"
    advice = "; was there too little memory?" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{advice}"


def _serve() -> None:
    """Run the job on standard input and write its messages to standard output."""
    from importlib import import_module

    from tfanet.console import quiet_libraries

    # Libraries may print to standard output; messages go to a copy of it.
    messages: IO[bytes] = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    quiet_libraries()
    module, function, job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(kind: str, value: Any) -> None:
        messages.write(pickle.dumps((kind, value)))
        messages.flush()

    try:
        result = getattr(import_module(module), function)(job, lambda message: send("message", message))
    except (UserError, VerificationError) as error:
        send("error", error)
    else:
        send("result", result)


def _end_with_parent() -> None:
    """Exit when standard input closes: the parent has ended, or no longer needs this process."""
    while os.read(0, 4096):  # not sys.stdin, whose lock Python takes at exit
        pass
    os._exit(1)


if __name__ == "__main__":
    _serve()
