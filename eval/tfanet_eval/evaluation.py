"""One pass over a data set: accuracy, timing and parity with a reference, one record per expression."""

from __future__ import annotations

import functools
import itertools
import operator
import time
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tfanet.console import track
from tfanet.deprecation import renamed_arguments, renamed_property
from tfanet.errors import UserError, VerificationError
from tfanet_eval.metrics import Convention, SegmentationMetrics, convention_named
from tfanet_eval.prefetch import Batch, Call, Loader, Worker, prefetch
from tfanet_eval.results import Record, ReferenceResult
from tfanet_eval.timing import Latency, Timing

if TYPE_CHECKING:
    from tfanet.data.refer import Expression, ReferDataset
    from tfanet_engines.engine import Engine
    from tfanet_engines.parity import ParityMetrics

SHUFFLE_SEED = 0
Sink = Callable[[Sequence[Record]], None]


@dataclass(frozen=True)
class Comparison:
    """Parity of an engine with its reference, both on the same inputs."""

    parity: ParityMetrics
    """Of the two models' logits, at the model's S x S."""
    metrics: SegmentationMetrics
    """The reference's metrics against the targets."""


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`; `a + b` is the evaluation of both sets of samples."""

    records: tuple[Record, ...]
    convention: Convention
    timing: Timing = field(default_factory=Timing)

    cost = renamed_property("cost", "timing")
    beside = renamed_property("beside", "merge")

    def __post_init__(self) -> None:
        if len({record.reference is None for record in self.records}) > 1:
            raise ValueError("some records have a reference and others have none")

    def __add__(self, other: Evaluation) -> Evaluation:
        """Raises `ValueError` if only one of the two has a reference, or their conventions differ."""
        if self.convention != other.convention:
            raise ValueError("the two evaluations have different conventions")
        return Evaluation(self.records + other.records, self.convention, self.timing + other.timing)

    def merge(self, other: Evaluation) -> Evaluation:
        """The evaluation of two parts that ran at the same time, in the order of the data set.

        Raises as `+`.
        """
        records = {record.index: record for record in (self + other).records}
        timing = self.timing.merge(other.timing)
        return Evaluation(tuple(records[index] for index in sorted(records)), self.convention, timing)

    @functools.cached_property
    def metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics.of(((r.intersection, r.union) for r in self.records), self.convention)

    @functools.cached_property
    def latency(self) -> Latency:
        """Of the calls with a full batch, one value each."""
        batch = max(record.batch for record in self.records)
        calls = itertools.groupby(self.records, key=lambda record: (record.split, record.call))
        firsts = (next(records) for _, records in calls)
        return Latency(tuple(record.ms for record in firsts if record.batch == batch), batch)

    @functools.cached_property
    def comparison(self) -> Comparison | None:
        results = [record.reference for record in self.records if record.reference is not None]
        if not results:
            return None
        parity = functools.reduce(operator.add, (result.parity for result in results))
        counts = ((result.intersection, result.union) for result in results)
        return Comparison(parity, SegmentationMetrics.of(counts, self.convention))

    @property
    def drops(self) -> dict[str, float]:
        """The reference's mIoU and oIoU minus the engine's, 0..1; empty without a reference."""
        if self.comparison is None:
            return {}
        reference, engine = self.comparison.metrics.result(), self.metrics.result()
        return {name: reference[name] - engine[name] for name in ("mIoU", "oIoU")}

    def to_dict(self) -> dict[str, Any]:
        """All metrics as plain numbers, for JSON."""
        comparison = self.comparison
        return {
            "metrics": self.metrics.result(),
            "latency": self.latency.to_dict(),
            "parity": comparison.parity.to_dict() if comparison else None,
            "reference_metrics": comparison.metrics.result() if comparison else None,
        }


def combine(evaluations: Iterable[Evaluation]) -> Evaluation:
    """The sum of evaluations that ran one after the other, such as those of several splits; raises as `+`."""
    return functools.reduce(operator.add, evaluations)


@renamed_arguments(shuffle_sentences="shuffle_expressions")
def evaluate(
    engine: Engine,
    dataset: ReferDataset,
    *,
    reference: Engine | None = None,
    limit: int | None = None,
    batch: int = 1,
    shuffle_expressions: bool = False,
    convention: str | Convention = "original",
    progress: str | None = None,
    done: Iterable[Record] = (),
    sink: Sink | None = None,
    part: tuple[int, int] = (0, 1),
    overlap: bool = True,
) -> Evaluation:
    """Evaluate `engine` on `dataset`. Only `engine.infer` is timed, after one untimed call.

    Args:
        reference: gets the same inputs; its logits and metrics are compared with the engine's.
        limit: only the first `limit` samples; None is all.
        batch: images per call.
        shuffle_expressions: gives every image an expression of another image (fixed seed), as a control:
            accuracy falls unless the model ignores the expression.
        convention: a name in `tfanet_eval.metrics.CONVENTIONS` or a `Convention`.
        progress: the label of a progress bar; None shows none.
        done: records of earlier calls, which are not repeated.
        sink: gets the records of each call when it finishes.
        part: (k, n) evaluates only the k-th of n equal, consecutive parts of the calls that are not `done`.
        overlap: threads load the next images and count the last masks while the engine runs. Without it
            nothing else runs while a call is timed.

    Raises `VerificationError` if a model's logits are not finite, and `UserError` for invalid data, for what
    the engine rejects, and for a data set without samples.
    """
    begin_wall, begin_cpu = time.monotonic(), time.process_time()
    convention = convention_named(convention) if isinstance(convention, str) else convention
    samples = convention.samples(list(dataset))[: limit or None]
    if not samples:
        raise UserError(f"split {dataset.split} has no expression to evaluate")
    expressions = [dataset[index] for index in samples]
    records = {record.index: record for record in done}
    calls = _calls(len(samples), batch, records, part)
    begin_tokens = time.thread_time()
    tokens = _tokenize(dataset, samples, engine.config.token_length, shuffle_expressions)
    tokens_cpu = time.thread_time() - begin_tokens

    def keep(new: Sequence[Record]) -> None:
        records.update((record.index, record) for record in new)
        if sink:
            sink(new)

    task = _Pass(engine, reference, dataset, expressions, tokens, convention)
    engine_wall, data_cpu, metrics_cpu = task.run(calls, keep, progress, overlap)
    timing = Timing(
        wall=time.monotonic() - begin_wall,
        engine_wall=engine_wall,
        cpu=time.process_time() - begin_cpu,
        data_cpu=tokens_cpu + data_cpu,
        metrics_cpu=metrics_cpu,
        samples=sum(len(call.samples) for call in calls),
    )
    return Evaluation(tuple(records[index] for index in sorted(records)), convention, timing)


def _calls(count: int, batch: int, done: Container[int], part: tuple[int, int]) -> list[Call]:
    """The calls of `part` for `count` samples, without those whose first sample is in `done`."""
    batch, (k, n) = min(batch, count), part
    calls = [
        Call(number, range(start, min(start + batch, count)))
        for number, start in enumerate(range(0, count, batch))
        if start not in done
    ]
    return calls[k * len(calls) // n : (k + 1) * len(calls) // n]


@dataclass(frozen=True)
class _Pass:
    """Engine calls over samples: load a batch, run the engines, score their logits."""

    engine: Engine
    reference: Engine | None
    dataset: ReferDataset
    expressions: Sequence[Expression]
    """The samples."""
    tokens: np.ndarray
    """int64 `[samples, L]`."""
    convention: Convention

    def run(
        self, calls: Sequence[Call], sink: Sink, progress: str | None, overlap: bool
    ) -> tuple[float, float, float]:
        """Make `calls`; returns seconds: wall time of the engines, CPU time of data and of metrics."""
        loading, scoring = Worker[Batch](threaded=overlap), Worker[list[Record]](threaded=overlap)
        loader = Loader(self.dataset, self.expressions, self.engine.config.image_size)
        pending: Future[list[Record]] | None = None
        engine_wall = 0.0
        try:
            batches = prefetch(loading, loader, calls)
            for number, batch in enumerate(track(batches, progress, len(calls)) if progress else batches):
                tokens = self.tokens[batch.call.samples.start : batch.call.samples.stop]
                if number == 0:
                    self.engine.infer(batch.images, tokens)  # warm-up, not timed
                logits, seconds = _infer(self.engine, batch, tokens)
                engine_wall += seconds
                reference_logits = None
                if self.reference is not None:
                    reference_logits, reference_seconds = _infer(self.reference, batch, tokens)
                    engine_wall += reference_seconds
                if pending is not None:
                    sink(pending.result())
                ms = 1e3 * seconds / len(logits)
                pending = scoring.submit(self._score, batch, logits, reference_logits, ms)
            if pending is not None:
                sink(pending.result())
        finally:
            loading.close()
            scoring.close()
        return engine_wall, loading.cpu_seconds, scoring.cpu_seconds

    def _score(
        self, batch: Batch, logits: np.ndarray, reference_logits: np.ndarray | None, ms: float
    ) -> list[Record]:
        """A record for each sample of the batch; logits float `[b, S, S]`, `ms` per image."""
        from tfanet_engines.parity import compare_logits

        metrics, records = SegmentationMetrics(self.convention), []
        for row, (index, target) in enumerate(zip(batch.call.samples, batch.targets, strict=True)):
            expression, reference = self.expressions[index], None
            if reference_logits is not None:
                metrics.update(reference_logits[row], target)
                parity = compare_logits(reference_logits[row], logits[row])
                reference = ReferenceResult(*metrics.last, parity=parity)
            metrics.update(logits[row], target)
            intersection, union = metrics.last
            records.append(
                Record(
                    split=self.dataset.split,
                    index=index,
                    image=expression.image_id,
                    ref=expression.ref_id,
                    sentence=expression.sent_id,
                    text=expression.text,
                    intersection=intersection,
                    union=union,
                    area=np.count_nonzero(target) / target.size,
                    distractors=self.dataset.distractors(expression),
                    ms=ms,
                    call=batch.call.number,
                    batch=len(logits),
                    level=expression.level,
                    reference=reference,
                )
            )
        return records


def _infer(engine: Engine, batch: Batch, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """An engine's logits and its seconds; raises `VerificationError` if a logit is not finite."""
    begin = time.perf_counter()
    logits = engine.infer(batch.images, tokens)
    seconds = time.perf_counter() - begin
    if not np.isfinite(logits).all():
        first = batch.call.samples.start
        raise VerificationError(f"{engine.name} gives logits that are NaN or infinite (sample {first})")
    return logits, seconds


def derangement(groups: Sequence[int], seed: int = SHUFFLE_SEED) -> np.ndarray:
    """A permutation int64 `[n]` that moves every element to another group: `groups[p[i]] != groups[i]`.

    Members of a group are placed next to each other, groups and members in random order, and the sequence is
    rotated by the size of the largest group, which moves every member out of its group. Raises `UserError`
    if one group has more than half of the elements, because then there is no such permutation.
    """
    rng = np.random.default_rng(seed)
    _, inverse, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if 2 * sizes.max() > len(inverse):
        raise UserError("the expressions cannot be shuffled: one image has more than half of the samples")
    order = np.lexsort((rng.random(len(inverse)), rng.permutation(len(sizes))[inverse]))
    permutation = np.empty(len(inverse), dtype=np.int64)
    permutation[order] = np.roll(order, sizes.max())
    return permutation


def _tokenize(dataset: ReferDataset, samples: Sequence[int], length: int, shuffle: bool) -> np.ndarray:
    """Tokens int64 `[samples, L]` of the samples' expressions; with `shuffle`, of other images'."""
    from tfanet.data.preprocess import tokenize

    if shuffle:
        permutation = derangement([dataset[i].image_id for i in range(len(dataset))])
        samples = [int(permutation[index]) for index in samples]
    return tokenize([dataset[index].text for index in samples], length)
