"""`evaluate` with engines whose figures are known beforehand, and the shuffling of sentences."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from fake_engines import SIZE, Boxes, FakeEngine, everything, nothing, oracle

from tfanet.errors import UserError, VerificationError
from tfanet_eval.evaluation import derangement, evaluate
from tfanet_eval.latency import Latency


@pytest.mark.parametrize("batch", [1, 3, 4, 50])
def test_a_perfect_engine_scores_everything(batch):
    figures = evaluate(FakeEngine(oracle), Boxes(10), batch=batch).metrics.result()
    assert figures.pop("count") == 10
    assert set(figures.values()) == {1.0}


def test_masks_are_compared_at_the_pictures_own_size():
    boxes = Boxes(4, height=150, width=61)
    seen = []
    engine = FakeEngine(lambda images, tokens: seen.append(images) or everything(images, tokens))
    figures = evaluate(engine, boxes).metrics.result()
    assert seen[0].shape == (1, SIZE, SIZE, 3)
    assert figures["oIoU"] == pytest.approx((2 * 1 + 2 * 2) * 61 / (4 * 150 * 61))


def test_constant_engines_score_what_the_truth_leaves_them():
    assert evaluate(FakeEngine(nothing), Boxes(6)).metrics.result()["mIoU"] == 0
    rows = [1, 1, 2, 2, 3, 3]
    found = evaluate(FakeEngine(everything), Boxes(6)).metrics.result()
    assert found["mIoU"] == pytest.approx(np.mean(rows) / SIZE)


def test_a_picture_is_decoded_once_for_all_its_sentences():
    boxes = Boxes(7)
    evaluate(FakeEngine(oracle), boxes, batch=3)
    assert boxes.decoded == [0, 1, 2, 3]


def test_the_limit_counts_samples():
    engine = FakeEngine(oracle)
    assert len(evaluate(engine, Boxes(9), limit=5).metrics) == 5


@pytest.mark.parametrize(
    ("count", "batch", "calls", "timed", "timed_batch"),
    [
        pytest.param(3, 1, [1, 1, 1, 1], 3, 1, id="one-by-one"),
        pytest.param(5, 2, [2, 2, 2, 1], 2, 2, id="last-batch-smaller"),
        pytest.param(3, 8, [3, 3], 1, 3, id="fewer-than-a-batch"),
    ],
)
def test_warm_up_and_a_smaller_last_batch_are_not_timed(count, batch, calls, timed, timed_batch):
    engine = FakeEngine(oracle)
    latency = evaluate(engine, Boxes(count), batch=batch).latency
    assert engine.calls == calls
    assert len(latency.milliseconds) == timed
    assert latency.batch == timed_batch


def test_only_the_engine_is_timed(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("tfanet_eval.evaluation.time.perf_counter", lambda: next(clock))
    latency = evaluate(FakeEngine(oracle), Boxes(4), reference=FakeEngine(oracle), batch=2).latency
    assert latency.milliseconds == (500.0, 500.0)


def test_a_reference_sees_the_same_inputs_and_gives_parity_and_its_own_figures():
    seen = {"engine": [], "reference": []}

    def recording(who, answer):
        return FakeEngine(lambda images, tokens: seen[who].append((images, tokens)) or answer(images, tokens))

    half = recording("engine", lambda images, tokens: oracle(images, tokens) - 0.25)
    found = evaluate(half, Boxes(5), reference=recording("reference", oracle), batch=2)
    comparison = found.comparison
    assert comparison is not None
    assert comparison.parity.pairs == 5
    assert comparison.parity.max_abs_error == pytest.approx(0.25)
    assert comparison.parity.mask_agreement == 1.0
    assert comparison.metrics.result()["mIoU"] == 1.0
    assert found.drops == {"mIoU": 0.0, "oIoU": 0.0}
    for ours, theirs in zip(seen["engine"][1:], seen["reference"], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_drop_is_positive_when_the_engine_is_worse():
    found = evaluate(FakeEngine(nothing), Boxes(2), reference=FakeEngine(oracle))
    assert found.drops == {"mIoU": 1.0, "oIoU": 1.0}
    assert found.to_dict()["reference_metrics"]["mIoU"] == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_stop_the_evaluation(bad):
    def broken(images, tokens):
        return np.where(images[..., 0] > 0, bad, -1.0)

    with pytest.raises(VerificationError, match="NaN or infinite"):
        evaluate(FakeEngine(broken), Boxes(2))


def test_splits_add_up():
    engine, reference = FakeEngine(everything), FakeEngine(oracle)
    parts = [evaluate(engine, Boxes(n), reference=reference) for n in (2, 4)]
    both = parts[0] + parts[1]
    assert both.comparison is not None
    assert both.comparison.parity.pairs == len(both.metrics) == len(both.latency.milliseconds) == 6
    assert both.metrics.result()["mIoU"] == pytest.approx(np.mean([1, 1, 1, 1, 2, 2]) / SIZE)


def test_only_evaluations_of_a_kind_add_up():
    alone, compared = (
        evaluate(FakeEngine(oracle), Boxes(2), reference=reference)
        for reference in (None, FakeEngine(oracle))
    )
    assert len((alone + alone).metrics) == 4
    with pytest.raises(ValueError, match="reference"):
        _ = alone + compared
    with pytest.raises(ValueError, match="conventions"):
        _ = alone + evaluate(FakeEngine(oracle), Boxes(2), convention="cris")


def test_latency_is_the_median_and_a_percentile():
    latency = Latency(tuple(float(i) for i in range(1, 102)))
    assert (latency.median, latency.p95) == (51.0, 96.0)


@pytest.fixture
def sentence_reader():
    """Marks as many rows as the number in `box k`, whatever the picture: reads and does not look."""
    from tfanet.data.preprocess import tokenize

    rows = {bytes(tokens): k + 1 for k, tokens in enumerate(tokenize([f"box {k}" for k in range(10)], 17))}

    def answer(images, tokens):
        logits = nothing(images, tokens)
        for values, sentence in zip(logits, tokens, strict=True):
            values[: rows[bytes(sentence)]] = 1.0
        return logits

    return FakeEngine(answer)


def test_shuffling_ruins_a_reader_and_leaves_a_looker(sentence_reader):
    plain = evaluate(sentence_reader, Boxes(20)).metrics.result()
    shuffled = evaluate(sentence_reader, Boxes(20), shuffle_sentences=True).metrics.result()
    looker = evaluate(FakeEngine(oracle), Boxes(20), shuffle_sentences=True).metrics.result()
    assert plain["mIoU"] == looker["mIoU"] == 1.0
    assert shuffled["mIoU"] < 0.7


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_and_threads_change_nothing(overlap, parts):
    engine, reference = FakeEngine(lambda x, t: oracle(x, t) - 1.5), FakeEngine(oracle)
    whole = evaluate(engine, Boxes(11, 40, 60), reference=reference, batch=2)
    found = [
        evaluate(engine, Boxes(11, 40, 60), reference=reference, batch=2, part=(k, parts), overlap=overlap)
        for k in range(parts)
    ]
    records = sorted((r for part in found for r in part.records), key=lambda r: r.index)
    assert [dataclasses.replace(r, ms=0) for r in records] == [
        dataclasses.replace(r, ms=0) for r in whole.records
    ]


def test_what_is_done_is_not_done_again():
    whole = evaluate(FakeEngine(oracle), Boxes(7), batch=2)
    engine, fresh = FakeEngine(nothing), []
    again = evaluate(engine, Boxes(7), batch=2, done=whole.records[2:6], sink=fresh.extend)
    assert [r.index for r in fresh] == [0, 1, 6]
    assert engine.calls == [2, 2, 1]
    assert again.records[2:6] == whole.records[2:6]


def test_a_data_set_without_samples_is_a_mistake_of_the_user():
    with pytest.raises(UserError, match="no expression"):
        evaluate(FakeEngine(oracle), Boxes(0))


def test_the_first_sentence_of_each_reference_where_the_convention_says_so():
    assert [r.sentence for r in evaluate(FakeEngine(oracle), Boxes(6), convention="cris-first").records] == [
        0, 2, 4,
    ]  # fmt: skip


def test_a_damaged_picture_is_named_and_the_threads_end():
    boxes = Boxes(8)

    def damaged(expression):
        raise UserError("image none is damaged")

    boxes.image = damaged
    with pytest.raises(UserError, match="none is damaged"):
        evaluate(FakeEngine(oracle), boxes)


def test_shuffling_works_on_a_single_sample_too():
    seen = []
    engine = FakeEngine(lambda images, tokens: seen.append(tokens) or oracle(images, tokens))
    for shuffle in (False, True):
        evaluate(engine, Boxes(4), limit=1, shuffle_sentences=shuffle)
    assert not np.array_equal(seen[0], seen[-1])


GROUPS = [
    pytest.param([0, 1], id="two"),
    pytest.param([0, 0, 1, 1], id="halves"),
    pytest.param([0, 0, 0, 1, 2, 2], id="uneven"),
    pytest.param([5, 3, 5, 3, 4, 4, 5, 9], id="mixed"),
    pytest.param(sorted(i % 37 for i in range(200)), id="many"),
]


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("seed", range(5))
def test_every_sentence_moves_to_another_picture(groups, seed):
    moved = derangement(groups, seed)
    assert Counter(moved.tolist()) == Counter(range(len(groups)))
    assert all(groups[target] != group for target, group in zip(moved, groups, strict=True))
    assert np.array_equal(moved, derangement(groups, seed))


@pytest.mark.parametrize("groups", [[7], [1, 1], [1, 1, 2]], ids=["one", "one-picture", "too-many"])
def test_shuffling_is_refused_where_it_cannot_be(groups):
    with pytest.raises(UserError, match="cannot be shuffled"):
        derangement(groups)
