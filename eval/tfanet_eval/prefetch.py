"""Images and target masks of the next calls, loaded in a thread while the engine runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

import numpy as np

from tfanet.data.preprocess import resize_image

if TYPE_CHECKING:
    from tfanet.data.refer import Expression, ReferDataset

DEPTH = 3
"""Calls that are loaded ahead of the engine."""
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One call of the engine."""

    number: int
    """From 0, within the split."""
    samples: range
    """Indices of its samples within the split."""


@dataclass(frozen=True)
class Batch:
    """A call with its images and targets."""

    call: Call
    images: np.ndarray
    """uint8 `[b, S, S, 3]`."""
    targets: list[np.ndarray]
    """uint8 `[H, W]` in {0, 1}, each at its image's own size."""


class Worker(Generic[T]):
    """One thread that runs functions in order and sums their CPU time.

    With `threaded` off, `submit` runs the function in the caller, so nothing runs while the engine does.
    """

    def __init__(self, *, threaded: bool) -> None:
        self.cpu_seconds = 0.0
        self._pool = ThreadPoolExecutor(1) if threaded else None

    def submit(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> Future[T]:
        def timed() -> T:
            begin = time.thread_time()
            try:
                return work(*args, **options)
            finally:
                self.cpu_seconds += time.thread_time() - begin

        if self._pool is not None:
            return self._pool.submit(timed)
        done: Future[T] = Future()
        done.set_result(timed())
        return done

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class Loader:
    """Decodes and resizes images; consecutive samples of one image decode it once."""

    def __init__(self, dataset: ReferDataset, expressions: Sequence[Expression], size: int) -> None:
        self._dataset, self._expressions, self._size = dataset, expressions, size
        self._last_image: tuple[int, np.ndarray] | None = None
        self._last_target: tuple[int, np.ndarray] | None = None

    def load(self, call: Call) -> Batch:
        """The batch of `call`; raises `UserError` if an image is missing or damaged."""
        images = np.empty((len(call.samples), self._size, self._size, 3), dtype=np.uint8)
        expressions = [self._expressions[index] for index in call.samples]
        for row, expression in zip(images, expressions, strict=True):
            row[:] = self._image(expression)
        return Batch(call, images, [self._target(expression) for expression in expressions])

    def _image(self, expression: Expression) -> np.ndarray:
        if self._last_image is None or self._last_image[0] != expression.image_id:
            resized = resize_image(self._dataset.image(expression), self._size)
            self._last_image = expression.image_id, resized
        return self._last_image[1]

    def _target(self, expression: Expression) -> np.ndarray:
        if self._last_target is None or self._last_target[0] != expression.ann_id:
            self._last_target = expression.ann_id, self._dataset.mask(expression)
        return self._last_target[1]


def prefetch(worker: Worker[Batch], loader: Loader, calls: Sequence[Call]) -> Iterator[Batch]:
    """The batches of `calls` in order; `worker` loads up to `DEPTH` of them ahead."""
    pending: deque[Future[Batch]] = deque()
    for call in calls:
        pending.append(worker.submit(loader.load, call))
        if len(pending) > DEPTH:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
