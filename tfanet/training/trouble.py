"""Trouble with its name: pairs that cannot be read, batches whose loss or gradient is not finite, signals."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
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

    Item i is that of `pairs` with `index`, and `broken`: (index, reason) of each that was passed over. With
    `replace` False a broken pair raises its `UserError`.
    """

    def __init__(self, pairs: Dataset, replace: bool) -> None:
        self.pairs, self.replace = pairs, replace

    def __len__(self) -> int:
        return len(self.pairs)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: int) -> dict[str, Any]:
        broken: list[tuple[int, str]] = []
        for place in range(index, index + len(self)):
            place %= len(self)
            try:
                return {**self.pairs[place], "index": place, "broken": broken}
            except UserError as error:
                if not self.replace:
                    raise UserError(f"{describe(self.pairs, place)}: {error}") from error
                broken.append((place, str(error)))
        raise UserError(f"none of the {len(self)} pairs can be read: {broken[0][1]}")


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items of `Readable` as a batch: tensors, and one list of all that were passed over."""
    broken = [pair for item in items for pair in item.pop("broken")]
    return {**default_collate(items), "broken": broken}


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
