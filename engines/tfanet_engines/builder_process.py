"""A build in a subprocess: a crash of the native parser or builder ends only the subprocess."""

from __future__ import annotations

from pathlib import Path

from tfanet.console import peak_memory
from tfanet.errors import UserError
from tfanet.subprocesses import OnMessage, run_in_subprocess
from tfanet_engines.builder import Built, Progress, Request, build


def run(request: Request, plan: Path, progress: Progress) -> tuple[Built, int]:
    """Build `request` into the file `plan`; returns its description and the subprocess's peak memory, bytes.

    Raises what `tfanet_engines.builder.build` raises, and `VerificationError` if the subprocess ends
    without a result.
    """
    return run_in_subprocess(
        _build, (request, plan), lambda step: progress(*step), name="the builder's process"
    )


def _build(job: tuple[Request, Path], send: OnMessage) -> tuple[Built, int]:
    request, plan = job
    engine_bytes, built = build(request, lambda *step: send(step))
    try:
        plan.write_bytes(engine_bytes)
    except OSError as error:
        raise UserError(f"cannot write {plan}: {error.strerror or error}") from error
    return built, peak_memory()
