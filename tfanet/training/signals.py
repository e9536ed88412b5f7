"""Ctrl-C and SIGTERM stop a training run after the current step; its data loader processes ignore them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any


class StopRequest:
    """Whether Ctrl-C or SIGTERM asked this process to stop."""

    requested = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the current step; the second kills."""
    stop = StopRequest()

    def request(number: int, frame: object) -> None:
        stop.requested = True
        signal.signal(number, previous[number])

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """In data loader process `worker`: ignore Ctrl-C, and SIGTERM unless the training process sends it.

    A terminal, torchrun and a cluster send them to every process of the run, but loader processes are still
    needed to finish the step. The training process sends SIGTERM itself if it ends early.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # absent on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_exit_on_sigterm_from, args=(os.getppid(),), daemon=True).start()


def _exit_on_sigterm_from(parent: int) -> None:
    """Exit this process at SIGTERM from `parent`; ignore SIGTERM from any other."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        continue
    os._exit(0)
