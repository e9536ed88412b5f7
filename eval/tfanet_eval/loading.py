"""Pictures and truths of the calls to come, made ready in a thread while the engine runs."""

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

AHEAD = 3
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """The samples of one call of the engine."""

    number: int
    places: range
    """Their places among the split's samples."""


@dataclass(frozen=True)
class Loaded:
    """A call's inputs and truths."""

    call: Call
    images: np.ndarray
    """uint8 `[b, S, S, 3]`."""
    truths: list[np.ndarray]
    """uint8 `[H, W]` in {0, 1}, each at its picture's size."""


class Thread(Generic[T]):
    """One thread that does what it is given in order, and how much CPU time that took.

    Without `beside` everything is done at once by the caller, so that nothing runs beside the engine.
    """

    def __init__(self, *, beside: bool) -> None:
        self.cpu_seconds = 0.0
        self._pool = ThreadPoolExecutor(1) if beside else None

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
    """Decodes and resizes. Samples of one picture follow one another, so that it is decoded once."""

    def __init__(self, dataset: ReferDataset, expressions: Sequence[Expression], size: int) -> None:
        self._dataset, self._expressions, self._size = dataset, expressions, size
        self._image: tuple[int, np.ndarray] | None = None
        self._truth: tuple[int, np.ndarray] | None = None

    def load(self, call: Call) -> Loaded:
        """`UserError` when a picture is missing or damaged."""
        images = np.empty((len(call.places), self._size, self._size, 3), dtype=np.uint8)
        chosen = [self._expressions[place] for place in call.places]
        for row, expression in zip(images, chosen, strict=True):
            row[:] = self._picture(expression)
        return Loaded(call, images, [self._mask(expression) for expression in chosen])

    def _picture(self, expression: Expression) -> np.ndarray:
        if self._image is None or self._image[0] != expression.image_id:
            resized = resize_image(self._dataset.image(expression), self._size)
            self._image = expression.image_id, resized
        return self._image[1]

    def _mask(self, expression: Expression) -> np.ndarray:
        if self._truth is None or self._truth[0] != expression.ann_id:
            self._truth = expression.ann_id, self._dataset.mask(expression)
        return self._truth[1]


def ahead(thread: Thread[Loaded], loader: Loader, calls: Sequence[Call]) -> Iterator[Loaded]:
    """The loaded calls in order, `AHEAD` of them made ready before they are asked for."""
    waiting: deque[Future[Loaded]] = deque()
    for call in calls:
        waiting.append(thread.submit(loader.load, call))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
