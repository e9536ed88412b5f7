"""Functions in processes of their own, several at once: their answers, or the first trouble in one line."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from tfanet.console import quiet_libraries
from tfanet.errors import UserError, VerificationError
from tfanet_engines.builder_process import how_it_ended

T = TypeVar("T")
J = TypeVar("J")
Heard = Callable[[int], None]


def in_children(
    work: Callable[[J, Heard], T], jobs: Sequence[J], heard: Heard = lambda steps: None
) -> list[T]:
    """What `work(job, heard)` gives for each job, all at once, each in a fresh process, in their order.

    `work` is a function of a module; what it tells its `heard` is told to ours, as it comes. The first
    `UserError` or `VerificationError` of any of them is raised here, and so is a `VerificationError` for a
    process that ends without an answer. When this returns or raises, Ctrl-C included, none of them runs.
    """
    answers: dict[int, T] = {}
    with _started(work, jobs) as children:
        open_ends = {ours: place for place, (_, ours) in enumerate(children)}
        while open_ends:
            for end in wait([*open_ends]):
                assert isinstance(end, Connection)
                place = open_ends[end]
                try:
                    kind, value = end.recv()
                except (EOFError, ConnectionResetError):
                    child = children[place][0]
                    child.join()
                    which = f"process {place + 1} of {len(jobs)}" if len(jobs) > 1 else "its process"
                    raise VerificationError(f"{which} {how_it_ended(child.exitcode or 0)}") from None
                if kind == "error":
                    raise value
                if kind == "steps":
                    heard(value)
                else:
                    answers[place] = value
                    del open_ends[end]
    return [answers[place] for place in range(len(jobs))]


@contextmanager
def _started(
    work: Callable[[J, Heard], T], jobs: Sequence[J]
) -> Iterator[list[tuple[BaseProcess, Connection]]]:
    """The processes, and our ends of their pipes; all ended afterwards."""
    context = multiprocessing.get_context("spawn")
    children: list[tuple[BaseProcess, Connection]] = []
    try:
        with _deaf_to_ctrl_c():
            for job in jobs:
                ours, theirs = context.Pipe(duplex=False)
                child = context.Process(target=_child, args=(work, job, theirs))
                child.start()
                theirs.close()  # else the end of the child would not be seen
                children.append((child, ours))
        yield children
    except BaseException:
        for child, _ in children:
            child.kill()
        raise
    finally:
        for child, ours in children:
            child.join()
            ours.close()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that start meanwhile ignore Ctrl-C, which a terminal sends to all: this one ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python keeps signals to the main thread
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _child(work: Callable[[Any, Heard], Any], job: Any, answer: Connection) -> None:
    quiet_libraries()
    try:
        answer.send(("answer", work(job, lambda steps: answer.send(("steps", steps)))))
    except (UserError, VerificationError) as error:
        answer.send(("error", error))
    except BrokenPipeError:
        return  # nobody listens any more: the process that asked is gone
