"""A build in a process of its own: parser and builder are native code, and a crash of theirs ends no more.

`run` starts `python -m tfanet_engines.builder_process`, which reads one request, a line of JSON, from its
standard input and answers with lines of JSON: progress, then what was built, or what was wrong. The plan goes
to a file. The child ends when its standard input does, so it never outlives its parent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from tfanet.console import peak_memory
from tfanet.errors import UserError, VerificationError
from tfanet_engines.builder import Built, Progress, Request, build, built_of
from tfanet_engines.options import BuildOptions

ERRORS: dict[str, type[Exception]] = {"user": UserError, "verification": VerificationError}
LONGEST_TAIL = 300


def run(request: Request, plan: Path, progress: Progress) -> tuple[Built, int]:
    """Build `request` into the file `plan`; what is known of it, and the peak memory of the child in bytes.

    Raises what `tfanet_engines.builder.build` raises there, and `VerificationError` when the process ends
    without an answer. `KeyboardInterrupt`, as any other exception here, ends the child first.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with tempfile.TemporaryFile() as noise:
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", __spec__.name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, env=environment,
                start_new_session=True,  # Ctrl-C is for the parent, who ends the child
            )  # fmt: skip
        except OSError as error:
            raise VerificationError(f"the builder's process does not start: {error}") from error
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            answer = _converse(child.stdin, child.stdout, request, plan, progress)
        except BaseException:
            child.kill()
            raise
        finally:
            child.wait()
        if answer is None:
            raise VerificationError(f"the builder's process {how_it_ended(child.returncode)}{_tail(noise)}")
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["message"])
    return built_of(answer["built"]), answer["peak_memory"]


def _converse(
    stdin: IO[bytes], stdout: IO[bytes], request: Request, plan: Path, progress: Progress
) -> dict[str, Any] | None:
    """The child's last word, None if it has none. Its input stays open until then, for it ends with it."""
    with stdin, stdout:
        try:
            stdin.write(json.dumps(_request_values(request) | {"plan": str(plan)}).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            return None
        for line in stdout:
            if not line.endswith(b"\n"):
                return None  # it was ended in the middle of a word
            message = json.loads(line)
            if "phase" not in message:
                return message
            progress(message["phase"], message["done"], message["steps"])
    return None


def _request_values(request: Request) -> dict[str, Any]:
    return dataclasses.asdict(request) | {"onnx": str(request.onnx)}


def how_it_ended(code: int) -> str:
    """What to say of a process that should have answered; a negative `code` is a signal's number."""
    if code >= 0:
        return f"ended with exit code {code} and without a word"
    name = signal.Signals(-code).name
    advice = "; was there too little memory?" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{advice}"


def _tail(noise: IO[bytes]) -> str:
    """The end of what the child wrote to its error stream."""
    noise.seek(0)
    text = " ".join(noise.read().decode(errors="replace").split())
    return f": {text[-LONGEST_TAIL:]}" if text else ""


def serve() -> None:
    """Answer the request on standard input."""
    # Libraries print to standard output as they like; what is ours goes to a copy of it.
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    values = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def answer(**message: Any) -> None:
        ours.write(json.dumps(message) + "\n")
        ours.flush()

    plan = Path(values.pop("plan"))
    options = values["options"] | {"batch": tuple(values["options"]["batch"])}
    request = Request(
        onnx=Path(values["onnx"]), backend=values["backend"], capabilities=tuple(values["capabilities"]),
        plugins=tuple(values["plugins"]), options=BuildOptions(**options),
    )  # fmt: skip
    try:
        found, built = build(request, lambda phase, done, steps: answer(phase=phase, done=done, steps=steps))
        plan.write_bytes(found)
    except (UserError, VerificationError) as error:
        name = "user" if isinstance(error, UserError) else "verification"
        answer(error=name, message=str(error))
    except OSError as error:
        answer(error="user", message=f"cannot write {plan}: {error.strerror or error}")
    else:
        answer(built=dataclasses.asdict(built), peak_memory=peak_memory())


def _end_with_parent() -> None:
    """Leave at once when standard input ends: the parent is gone, or has heard enough."""
    while os.read(0, 4096):  # not through sys.stdin, whose lock Python wants when it ends
        pass
    os._exit(1)


if __name__ == "__main__":
    serve()
