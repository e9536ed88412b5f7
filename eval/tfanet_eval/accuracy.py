"""One pass over a data set: accuracy, time, and distance from a reference."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfanet.console import track
from tfanet.data.images import logits_to_size, resize_image
from tfanet.errors import UserError, VerificationError
from tfanet_eval.latency import Latency
from tfanet_eval.metrics import SegmentationMetrics

if TYPE_CHECKING:
    from tfanet.data.refer import Expression, ReferDataset
    from tfanet_engines.engine import Engine
    from tfanet_engines.parity import ParityFigures

SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Comparison:
    """An engine's distance from its reference, both on the same inputs."""

    parity: ParityFigures
    """The logits of the two, at the model's S x S."""
    metrics: SegmentationMetrics
    """The reference's own figures against the truth."""

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(self.parity + other.parity, self.metrics + other.metrics)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; `a + b` is the evaluation of both sets of samples."""

    metrics: SegmentationMetrics
    latency: Latency
    comparison: Comparison | None = None

    def __add__(self, other: Evaluation) -> Evaluation:
        """`ValueError` when only one of the two has a reference, or their batches differ."""
        metrics, latency = self.metrics + other.metrics, self.latency + other.latency
        if self.comparison is not None and other.comparison is not None:
            return Evaluation(metrics, latency, self.comparison + other.comparison)
        if self.comparison is not other.comparison:
            raise ValueError("one evaluation has a reference, the other has none")
        return Evaluation(metrics, latency)

    @property
    def miou_drop(self) -> float | None:
        """The reference's mIoU less the engine's, 0..1; None without a reference."""
        if self.comparison is None:
            return None
        return self.comparison.metrics.result()["mIoU"] - self.metrics.result()["mIoU"]

    def to_dict(self) -> dict[str, Any]:
        """Every figure as plain numbers, for JSON."""
        compared = self.comparison
        return {
            "metrics": self.metrics.result(),
            "latency": self.latency.to_dict(),
            "parity": compared.parity.to_dict() if compared else None,
            "reference_metrics": compared.metrics.result() if compared else None,
        }


def evaluate(
    engine: Engine,
    dataset: ReferDataset,
    *,
    reference: Engine | None = None,
    limit: int | None = None,
    batch: int = 1,
    shuffle_sentences: bool = False,
    progress: str | None = None,
) -> Evaluation:
    """Evaluate `engine` on the first `limit` samples of `dataset` (all where None), `batch` a call.

    Only `engine.infer` is timed, after one untimed call. With `reference`, both get the same inputs.
    `shuffle_sentences` gives every picture the sentence of another picture (fixed seed): a model that reads
    falls, one that only looks does not. `progress` is the label of a progress bar; None shows none. Raises
    `VerificationError` when the engine gives logits that are not finite, `UserError` for what the data set
    or the engine rejects.
    """
    from tfanet_engines.parity import ParityFigures, compare_logits

    expressions = [dataset[i] for i in range(min(len(dataset), limit or len(dataset)))]
    batch = min(batch, len(expressions))
    tokens = _tokens(dataset, len(expressions), engine.config.token_length, shuffle_sentences)
    metrics, reference_metrics = SegmentationMetrics(), SegmentationMetrics()
    milliseconds: list[float] = []
    parity = ParityFigures()
    batches = _batches(dataset, expressions, batch, engine.config.image_size)
    for start, images in track(batches, progress, -(-len(expressions) // batch)) if progress else batches:
        here = slice(start, start + len(images))
        if start == 0:
            engine.infer(images, tokens[here])
        begin = time.perf_counter()
        logits = engine.infer(images, tokens[here])
        elapsed = time.perf_counter() - begin
        if len(images) == batch:
            milliseconds.append(1e3 * elapsed / batch)
        if not np.isfinite(logits).all():
            raise VerificationError(f"{engine.name} gives logits that are NaN or infinite (sample {start})")
        truths = [dataset.mask(expression) for expression in expressions[here]]
        _add(metrics, logits, truths)
        if reference is not None:
            expected = reference.infer(images, tokens[here])
            parity += compare_logits(expected, logits)
            _add(reference_metrics, expected, truths)
    comparison = Comparison(parity, reference_metrics) if reference is not None else None
    return Evaluation(metrics, Latency(tuple(milliseconds), batch), comparison)


def derangement(groups: Sequence[int], seed: int = SHUFFLE_SEED) -> np.ndarray:
    """A permutation int64 `[n]` without fixed groups: `groups[p[i]] != groups[i]` for every i.

    Members of a group are put side by side, groups and members in a random order, and the whole is turned
    by the size of the largest group, which carries everyone out of his own. `UserError` where one group
    holds more than half of all, for then there is no such permutation.
    """
    rng = np.random.default_rng(seed)
    _, inverse, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if 2 * sizes.max() > len(inverse):
        raise UserError("the sentences cannot be shuffled: one picture has more than half of the samples")
    order = np.lexsort((rng.random(len(inverse)), rng.permutation(len(sizes))[inverse]))
    permutation = np.empty(len(inverse), dtype=np.int64)
    permutation[order] = np.roll(order, sizes.max())
    return permutation


def _tokens(dataset: ReferDataset, count: int, length: int, shuffle: bool) -> np.ndarray:
    """Token ids int64 `[count, L]` of the first samples' sentences, or of sentences of other pictures."""
    from tfanet.data.transforms import tokenize

    sources = range(count)
    if shuffle:
        sources = derangement([dataset[i].image_id for i in range(len(dataset))])[:count].tolist()
    return tokenize([dataset[i].sentence for i in sources], length)


def _batches(
    dataset: ReferDataset, expressions: Sequence[Expression], batch: int, size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The first sample's index and the images uint8 `[b, S, S, 3]` of every batch.

    Samples of one picture follow one another, so that it is decoded once.
    """
    image_id, image = None, None
    for start in range(0, len(expressions), batch):
        images = np.empty((len(expressions[start : start + batch]), size, size, 3), dtype=np.uint8)
        for row, expression in zip(images, expressions[start : start + batch], strict=True):
            if image is None or expression.image_id != image_id:
                image_id, image = expression.image_id, resize_image(dataset.image(expression), size)
            row[:] = image
        yield start, images


def _add(metrics: SegmentationMetrics, logits: np.ndarray, truths: Sequence[np.ndarray]) -> None:
    for values, truth in zip(logits, truths, strict=True):
        metrics.update(logits_to_size(values, *truth.shape), truth)
