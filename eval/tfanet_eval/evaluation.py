"""One pass over a data set: accuracy, time, and distance from a reference, expression by expression."""

from __future__ import annotations

import functools
import itertools
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tfanet.console import track
from tfanet.errors import UserError, VerificationError
from tfanet_eval.cost import Cost
from tfanet_eval.latency import Latency
from tfanet_eval.loading import Call, Loaded, Loader, Thread, ahead
from tfanet_eval.metrics import Convention, SegmentationMetrics, convention_named
from tfanet_eval.results import Against, Record

if TYPE_CHECKING:
    from tfanet.data.refer import Expression, ReferDataset
    from tfanet_engines.engine import Engine
    from tfanet_engines.parity import ParityFigures

SHUFFLE_SEED = 0
Sink = Callable[[Sequence[Record]], None]


@dataclass(frozen=True)
class Comparison:
    """An engine's distance from its reference, both on the same inputs."""

    parity: ParityFigures
    """The logits of the two, at the model's S x S."""
    metrics: SegmentationMetrics
    """The reference's own figures against the truth."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; `a + b` is the evaluation of both sets of samples."""

    records: tuple[Record, ...]
    convention: Convention
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        if len({record.against is None for record in self.records}) > 1:
            raise ValueError("one evaluation has a reference, the other has none")

    def __add__(self, other: Evaluation) -> Evaluation:
        """`ValueError` when only one of the two has a reference, or their conventions differ."""
        if self.convention != other.convention:
            raise ValueError("the two evaluations are in different conventions")
        return Evaluation(self.records + other.records, self.convention, self.cost + other.cost)

    def beside(self, other: Evaluation) -> Evaluation:
        """The evaluation of two shares of the same calls, measured at the same time, in the data's order.

        Raises as `+`.
        """
        both = {record.index: record for record in (self + other).records}
        cost = self.cost.beside(other.cost)
        return Evaluation(tuple(both[index] for index in sorted(both)), self.convention, cost)

    @functools.cached_property
    def metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics.of(((r.intersection, r.union) for r in self.records), self.convention)

    @functools.cached_property
    def latency(self) -> Latency:
        """Of the calls of full size, one number each."""
        batch = max(record.batch for record in self.records)
        calls = itertools.groupby(self.records, key=lambda record: (record.split, record.call))
        firsts = (next(records) for _, records in calls)
        return Latency(tuple(record.ms for record in firsts if record.batch == batch), batch)

    @functools.cached_property
    def comparison(self) -> Comparison | None:
        compared = [record.against for record in self.records if record.against is not None]
        if not compared:
            return None
        parity = functools.reduce(operator.add, (against.parity for against in compared))
        counts = ((against.intersection, against.union) for against in compared)
        return Comparison(parity, SegmentationMetrics.of(counts, self.convention))

    @property
    def drops(self) -> dict[str, float]:
        """The reference's mIoU and oIoU less the engine's, 0..1; empty without a reference."""
        if self.comparison is None:
            return {}
        theirs, ours = self.comparison.metrics.result(), self.metrics.result()
        return {name: theirs[name] - ours[name] for name in ("mIoU", "oIoU")}

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
    convention: str | Convention = "original",
    progress: str | None = None,
    done: Iterable[Record] = (),
    sink: Sink | None = None,
    part: tuple[int, int] = (0, 1),
    overlap: bool = True,
) -> Evaluation:
    """Evaluate `engine` on the first `limit` samples of `dataset` (all where None), `batch` a call.

    Only `engine.infer` is timed, after one untimed call. With `reference`, both get the same inputs.
    `shuffle_sentences` gives every picture the sentence of another picture (fixed seed): a model that reads
    falls, one that only looks does not. `progress` is the label of a progress bar; None shows none.

    Calls whose records are in `done` are not made again. `sink` gets the records of each call as it ends.
    `part` (k, n) makes the k-th of n equal shares, in a row, of the calls that are not done, and no other.
    With `overlap` threads load the next pictures and count the last masks while the engine runs; without,
    the engine has the machine to itself.

    Raises `VerificationError` when a model gives logits that are not finite, `UserError` for what the data
    set or the engine rejects, and for a data set without samples.
    """
    begin_wall, begin_cpu, busy = time.monotonic(), time.process_time(), 0.0
    rules = convention_named(convention) if isinstance(convention, str) else convention
    places = rules.samples(list(dataset))[: limit or None]
    expressions = [dataset[place] for place in places]
    if not expressions:
        raise UserError(f"split {dataset.split} has no expression to evaluate")
    batch = min(batch, len(expressions))
    records = {record.index: record for record in done}
    share, shares = part
    calls = [
        Call(number, range(start, min(start + batch, len(expressions))))
        for number, start in enumerate(range(0, len(expressions), batch))
        if start not in records
    ]
    calls = calls[share * len(calls) // shares : (share + 1) * len(calls) // shares]
    begin_tokens = time.thread_time()
    tokens = _tokens(dataset, places, engine.config.token_length, shuffle_sentences)
    tokens_cpu = time.thread_time() - begin_tokens
    loading, scoring = Thread[Loaded](beside=overlap), Thread[list[Record]](beside=overlap)
    loader = Loader(dataset, expressions, engine.config.image_size)
    score = functools.partial(_score, dataset, expressions, rules)
    pending: Future[list[Record]] | None = None

    def keep(found: Future[list[Record]] | None) -> None:
        for record in (fresh := found.result() if found else []):
            records[record.index] = record
        if fresh and sink:
            sink(fresh)

    try:
        batches = ahead(loading, loader, calls)
        for number, loaded in enumerate(track(batches, progress, len(calls)) if progress else batches):
            here = tokens[loaded.call.places.start : loaded.call.places.stop]
            if number == 0:
                engine.infer(loaded.images, here)
            logits, seconds = _timed(engine, loaded, here)
            expected, more = _timed(reference, loaded, here) if reference is not None else (None, 0.0)
            busy += seconds + more
            keep(pending)
            pending = scoring.submit(score, loaded, logits, expected, 1e3 * seconds / len(logits))
        keep(pending)
    finally:
        loading.close()
        scoring.close()
    cost = Cost(
        wall=time.monotonic() - begin_wall,
        engine_wall=busy,
        cpu=time.process_time() - begin_cpu,
        data_cpu=tokens_cpu + loading.cpu_seconds,
        metrics_cpu=scoring.cpu_seconds,
        samples=sum(len(call.places) for call in calls),
    )
    return Evaluation(tuple(records[index] for index in sorted(records)), rules, cost)


def _timed(engine: Engine, loaded: Loaded, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """An engine's finite logits, and the seconds that it took."""
    begin = time.perf_counter()
    logits = engine.infer(loaded.images, tokens)
    elapsed = time.perf_counter() - begin
    if not np.isfinite(logits).all():
        place = loaded.call.places.start
        raise VerificationError(f"{engine.name} gives logits that are NaN or infinite (sample {place})")
    return logits, elapsed


def _score(
    dataset: ReferDataset,
    expressions: Sequence[Expression],
    rules: Convention,
    loaded: Loaded,
    logits: np.ndarray,
    expected: np.ndarray | None,
    milliseconds: float,
) -> list[Record]:
    from tfanet_engines.parity import compare_logits

    metrics, records = SegmentationMetrics(rules), []
    for row, (place, truth) in enumerate(zip(loaded.call.places, loaded.truths, strict=True)):
        expression, against = expressions[place], None
        if expected is not None:
            metrics.update(expected[row], truth)
            against = Against(*metrics.last, parity=compare_logits(expected[row], logits[row]))
        metrics.update(logits[row], truth)
        intersection, union = metrics.last
        records.append(
            Record(
                split=dataset.split,
                index=place,
                image=expression.image_id,
                ref=expression.ref_id,
                sentence=expression.sent_id,
                text=expression.text,
                intersection=intersection,
                union=union,
                area=np.count_nonzero(truth) / truth.size,
                distractors=dataset.distractors(expression),
                ms=milliseconds,
                call=loaded.call.number,
                batch=len(logits),
                level=expression.level,
                against=against,
            )
        )
    return records


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


def _tokens(dataset: ReferDataset, places: Sequence[int], length: int, shuffle: bool) -> np.ndarray:
    """Token ids int64 `[count, L]` of the samples' sentences, or of sentences of other pictures."""
    from tfanet.data.transforms import tokenize

    if shuffle:
        moved = derangement([dataset[i].image_id for i in range(len(dataset))])
        places = [int(moved[place]) for place in places]
    return tokenize([dataset[place].text for place in places], length)
