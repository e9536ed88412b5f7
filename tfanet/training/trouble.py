"""Trouble with its name: pairs that cannot be read, batches whose loss or gradient is not finite, signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from torch.utils.data import Dataset, Subset, default_collate

from tfanet.errors import UserError


def describe(pairs: Dataset, index: int) -> str:
    """The picture's id and the sentence of pair `index`; its number where the data set tells no more."""
    if isinstance(pairs, Subset):
        return describe(pairs.dataset, pairs.indices[index])
    source = getattr(pairs, "source", None)
    if source is None:
        return f"pair {index}"
    return f"image {source[index].image_id} {source[index].sentence!r}"


class Readable(Dataset):
    """Pairs with their `index`; in the place of one that cannot be read stands the next that can.

    Item i is that of `pairs` with `index`, and `broken`: (index, reason) of each that was passed over. Where
    there is none, or with `replace` False the pair itself is broken, the item is the `UserError` to raise:
    one raised in a loader process arrives as its whole traceback.
    """

    def __init__(self, pairs: Dataset, replace: bool) -> None:
        self.pairs, self.replace = pairs, replace

    def __len__(self) -> int:
        return len(self.pairs)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: int) -> dict[str, Any] | UserError:
        broken: list[tuple[int, str]] = []
        for place in range(index, index + len(self)):
            place %= len(self)
            try:
                return {**self.pairs[place], "index": place, "broken": broken}
            except UserError as error:
                if not self.replace:
                    return UserError(f"{describe(self.pairs, place)}: {error}")
                broken.append((place, str(error)))
        return UserError(f"none of the {len(self)} pairs can be read: {broken[0][1]}")


def collate(items: list[dict[str, Any] | UserError]) -> dict[str, Any] | UserError:
    """Items of `Readable` as a batch: tensors, and one list of all that were passed over; or its error."""
    whole: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, UserError):
            return item
        whole.append(item)
    broken = [pair for item in whole for pair in item.pop("broken")]
    return {**default_collate(whole), "broken": broken}


def leave_signals(number: int) -> None:
    """Begin loader process `number`: Ctrl-C and SIGTERM are the training process's, which ends this one.

    A terminal, torchrun and a cluster send them to every process of the run. The training process itself
    sends SIGTERM where it ends early.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which macOS and Windows lack
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process at SIGTERM from `parent`; leave that of any other."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        continue
    os._exit(0)


@contextmanager
def named_loader_deaths() -> Iterator[None]:
    """Turn what PyTorch raises, wherever the run is, when a loader process dies into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        what = str(error).splitlines()[0].rstrip(". ")
        raise UserError(
            f"{what}; where memory or /dev/shm is short, fewer --workers need less of it"
        ) from error


class Stop:
    """Whether Ctrl-C or SIGTERM asked this process to stop."""

    requested = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into a request to stop after the current step; the second one kills."""
    stop = Stop()

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
