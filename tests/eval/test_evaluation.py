"""`evaluate` with engines whose metrics are known, and the shuffling of expressions."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from fake_engines import SIZE, Boxes, FakeEngine, everything, nothing, oracle

from tfanet.errors import UserError, VerificationError
from tfanet_eval.evaluation import derangement, evaluate
from tfanet_eval.timing import Latency, Timing


@pytest.mark.parametrize("batch", [1, 3, 4, 50])
def test_perfect_engine_has_perfect_metrics(batch):
    metrics = evaluate(FakeEngine(oracle), Boxes(10), batch=batch).metrics.result()
    assert metrics.pop("count") == 10
    assert set(metrics.values()) == {1.0}


def test_masks_are_compared_at_the_images_own_size():
    boxes = Boxes(4, height=150, width=61)
    inputs = []
    engine = FakeEngine(lambda images, tokens: inputs.append(images) or everything(images, tokens))
    metrics = evaluate(engine, boxes).metrics.result()
    assert inputs[0].shape == (1, SIZE, SIZE, 3)
    assert metrics["oIoU"] == pytest.approx((2 * 1 + 2 * 2) * 61 / (4 * 150 * 61))


def test_constant_engines_have_the_expected_miou():
    assert evaluate(FakeEngine(nothing), Boxes(6)).metrics.result()["mIoU"] == 0
    rows = [1, 1, 2, 2, 3, 3]
    metrics = evaluate(FakeEngine(everything), Boxes(6)).metrics.result()
    assert metrics["mIoU"] == pytest.approx(np.mean(rows) / SIZE)


def test_image_is_decoded_once_for_all_its_expressions():
    boxes = Boxes(7)
    evaluate(FakeEngine(oracle), boxes, batch=3)
    assert boxes.decoded == [0, 1, 2, 3]


def test_limit_is_in_samples():
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
def test_warm_up_and_smaller_last_batch_are_not_timed(count, batch, calls, timed, timed_batch):
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


def test_reference_gets_the_same_inputs_and_gives_parity_and_metrics():
    inputs = {"engine": [], "reference": []}

    def recording(name, answer):
        return FakeEngine(
            lambda images, tokens: inputs[name].append((images, tokens)) or answer(images, tokens)
        )

    half = recording("engine", lambda images, tokens: oracle(images, tokens) - 0.25)
    evaluation = evaluate(half, Boxes(5), reference=recording("reference", oracle), batch=2)
    comparison = evaluation.comparison
    assert comparison is not None
    assert comparison.parity.pairs == 5
    assert comparison.parity.max_abs_error == pytest.approx(0.25)
    assert comparison.parity.mask_agreement == 1.0
    assert comparison.metrics.result()["mIoU"] == 1.0
    assert evaluation.drops == {"mIoU": 0.0, "oIoU": 0.0}
    for call, reference_call in zip(inputs["engine"][1:], inputs["reference"], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(call, reference_call, strict=True))


def test_drop_is_positive_if_the_engine_is_worse():
    evaluation = evaluate(FakeEngine(nothing), Boxes(2), reference=FakeEngine(oracle))
    assert evaluation.drops == {"mIoU": 1.0, "oIoU": 1.0}
    assert evaluation.to_dict()["reference_metrics"]["mIoU"] == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_raise(bad):
    def broken(images, tokens):
        return np.where(images[..., 0] > 0, bad, -1.0)

    with pytest.raises(VerificationError, match="NaN or infinite"):
        evaluate(FakeEngine(broken), Boxes(2))


def test_evaluations_of_splits_add_up():
    engine, reference = FakeEngine(everything), FakeEngine(oracle)
    parts = [evaluate(engine, Boxes(n), reference=reference) for n in (2, 4)]
    both = parts[0] + parts[1]
    assert both.comparison is not None
    assert both.comparison.parity.pairs == len(both.metrics) == len(both.latency.milliseconds) == 6
    assert both.metrics.result()["mIoU"] == pytest.approx(np.mean([1, 1, 1, 1, 2, 2]) / SIZE)


def test_adding_evaluations_with_different_reference_or_convention_raises():
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


def test_timings_add_up_and_those_of_parallel_processes_merge():
    first, second = Timing(1, 2, 3, 4, 5, 6, processes=2), Timing(10, 20, 30, 40, 50, 60, processes=3)
    assert first + second == Timing(11, 22, 33, 44, 55, 66, processes=3)
    assert first.merge(second) == Timing(10, 22, 33, 44, 55, 66, processes=5)


@pytest.fixture
def text_only_engine():
    """Predicts k + 1 rows for the expression `box k` and ignores the image."""
    from tfanet.data.preprocess import tokenize

    rows = {bytes(tokens): k + 1 for k, tokens in enumerate(tokenize([f"box {k}" for k in range(10)], 17))}

    def answer(images, tokens):
        logits = nothing(images, tokens)
        for values, expression in zip(logits, tokens, strict=True):
            values[: rows[bytes(expression)]] = 1.0
        return logits

    return FakeEngine(answer)


def test_shuffling_lowers_a_text_only_engine_and_not_an_image_only_engine(text_only_engine):
    plain = evaluate(text_only_engine, Boxes(20)).metrics.result()
    shuffled = evaluate(text_only_engine, Boxes(20), shuffle_expressions=True).metrics.result()
    image_only = evaluate(FakeEngine(oracle), Boxes(20), shuffle_expressions=True).metrics.result()
    assert plain["mIoU"] == image_only["mIoU"] == 1.0
    assert shuffled["mIoU"] < 0.7


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_and_threads_do_not_change_records(overlap, parts):
    engine, reference = FakeEngine(lambda x, t: oracle(x, t) - 1.5), FakeEngine(oracle)
    single = evaluate(engine, Boxes(11, 40, 60), reference=reference, batch=2)
    evaluations = [
        evaluate(engine, Boxes(11, 40, 60), reference=reference, batch=2, part=(k, parts), overlap=overlap)
        for k in range(parts)
    ]
    records = sorted((r for part in evaluations for r in part.records), key=lambda r: r.index)
    assert [dataclasses.replace(r, ms=0) for r in records] == [
        dataclasses.replace(r, ms=0) for r in single.records
    ]


def test_done_calls_are_not_repeated():
    first = evaluate(FakeEngine(oracle), Boxes(7), batch=2)
    engine, new = FakeEngine(nothing), []
    resumed = evaluate(engine, Boxes(7), batch=2, done=first.records[2:6], sink=new.extend)
    assert [r.index for r in new] == [0, 1, 6]
    assert engine.calls == [2, 2, 1]
    assert resumed.records[2:6] == first.records[2:6]


def test_data_set_without_samples_raises_user_error():
    with pytest.raises(UserError, match="no expression"):
        evaluate(FakeEngine(oracle), Boxes(0))


def test_cris_first_evaluates_the_first_expression_of_each_reference():
    assert [r.sentence for r in evaluate(FakeEngine(oracle), Boxes(6), convention="cris-first").records] == [
        0, 2, 4,
    ]  # fmt: skip


def test_damaged_image_raises_and_the_threads_end():
    boxes = Boxes(8)

    def damaged(expression):
        raise UserError("image none is damaged")

    boxes.image = damaged
    with pytest.raises(UserError, match="none is damaged"):
        evaluate(FakeEngine(oracle), boxes)


def test_shuffling_works_with_limit_1():
    inputs = []
    engine = FakeEngine(lambda images, tokens: inputs.append(tokens) or oracle(images, tokens))
    for shuffle in (False, True):
        evaluate(engine, Boxes(4), limit=1, shuffle_expressions=shuffle)
    assert not np.array_equal(inputs[0], inputs[-1])


GROUPS = [
    pytest.param([0, 1], id="two"),
    pytest.param([0, 0, 1, 1], id="halves"),
    pytest.param([0, 0, 0, 1, 2, 2], id="uneven"),
    pytest.param([5, 3, 5, 3, 4, 4, 5, 9], id="mixed"),
    pytest.param(sorted(i % 37 for i in range(200)), id="many"),
]


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("seed", range(5))
def test_derangement_moves_every_element_to_another_group(groups, seed):
    permutation = derangement(groups, seed)
    assert Counter(permutation.tolist()) == Counter(range(len(groups)))
    assert all(groups[target] != group for target, group in zip(permutation, groups, strict=True))
    assert np.array_equal(permutation, derangement(groups, seed))


@pytest.mark.parametrize("groups", [[7], [1, 1], [1, 1, 2]], ids=["one", "one-group", "too-many"])
def test_derangement_without_solution_raises(groups):
    with pytest.raises(UserError, match="cannot be shuffled"):
        derangement(groups)
