"""The data loader: unreadable samples are replaced or end in one line, as does a loader process that dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from tfanet.errors import UserError
from tfanet.training.signals import ignore_signals


def describe(samples: Dataset, index: int) -> str:
    """The image id and expression of sample `index`; its index if the data set does not know them."""
    if isinstance(samples, Subset):
        return describe(samples.dataset, samples.indices[index])
    source = getattr(samples, "source", None)
    if source is None:
        return f"sample {index}"
    return f"image {source[index].image_id} {source[index].text!r}"


def load_batches(
    samples: Dataset, batches: list[list[int]], *, replace_unreadable: bool, workers: int, pin_memory: bool
) -> Iterator[dict[str, Any]]:
    """The `batches` of `samples`, collated, with `index` (int64 `[B]`) and `unreadable` ([(index, reason)]).

    Raises `UserError` if a sample is unreadable and not replaced; see `ReadableSamples`.
    """
    loader = DataLoader(
        ReadableSamples(samples, replace_unreadable),
        batch_sampler=batches,
        num_workers=workers,
        # Its own generator: the default would draw from torch's global one, and a resumed run would diverge.
        generator=torch.Generator(),
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=ignore_signals,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class ReadableSamples(Dataset):
    """Samples with their `index`; an unreadable one is replaced by the next readable one.

    Item i is that of `samples` with `index`, and `unreadable`: (index, reason) of each sample skipped. The
    item is a `UserError` to raise if no sample is readable, or with `replace` False if this one is not: an
    exception raised in a loader process would arrive with its whole traceback as message.
    """

    def __init__(self, samples: Dataset, replace: bool) -> None:
        self.samples, self.replace = samples, replace

    def __len__(self) -> int:
        return len(self.samples)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: int) -> dict[str, Any] | UserError:
        unreadable: list[tuple[int, str]] = []
        for i in range(index, index + len(self)):
            i %= len(self)
            try:
                return {**self.samples[i], "index": i, "unreadable": unreadable}
            except UserError as error:
                if not self.replace:
                    return UserError(f"{describe(self.samples, i)}: {error}")
                unreadable.append((i, str(error)))
        return UserError(f"all {len(self)} samples are unreadable: {unreadable[0][1]}")


def _collate(items: list[dict[str, Any] | UserError]) -> dict[str, Any] | UserError:
    """Items of `ReadableSamples` as a batch with one list `unreadable`; or the first error."""
    samples: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, UserError):
            return item
        samples.append(item)
    unreadable = [entry for sample in samples for entry in sample.pop("unreadable")]
    return {**default_collate(samples), "unreadable": unreadable}


@contextmanager
def loader_deaths_as_user_errors() -> Iterator[None]:
    """Turn the `RuntimeError` that PyTorch raises when a loader process dies into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        what = str(error).splitlines()[0].rstrip(". ")
        raise UserError(f"{what}; if memory or /dev/shm is short, give fewer --workers") from error
