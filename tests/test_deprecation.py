"""Former names of the Python API work for one version and warn."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import typer
from fake_engines import Boxes, FakeEngine, oracle
from PIL import Image

import tfanet_plugins
from tfanet.data import tokenize
from tfanet.data.refer import ReferDataset
from tfanet.deprecation import renamed_arguments
from tfanet_engines.parity import compare_logits, gate
from tfanet_eval import SegmentationMetrics
from tfanet_eval.cli.evaluate import app
from tfanet_eval.evaluation import evaluate
from tfanet_eval.prediction import predict


@renamed_arguments(old="new")
def double(new=1, *, other=0):
    return 2 * new + other


def test_former_and_present_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert double() == 2
        assert double(3) == double(new=3) == 6
    with pytest.warns(DeprecationWarning, match=r"double\(old=\) is deprecated; use new=") as caught:
        assert double(old=4, other=1) == 9
    assert caught[0].filename == __file__
    with (
        pytest.warns(DeprecationWarning, match="use new="),
        pytest.raises(TypeError, match="new and its former name old"),
    ):
        double(old=1, new=2)


def test_former_names_of_the_released_api(shapes_root):
    with pytest.warns(DeprecationWarning, match="use missing_plugin_layers"):
        assert tfanet_plugins.not_plugin_layers is tfanet_plugins.missing_plugin_layers
    expression = ReferDataset(shapes_root)[0]
    with pytest.warns(DeprecationWarning, match=r"Expression.sentence is deprecated; use text"):
        assert expression.sentence == expression.text
    with pytest.warns(DeprecationWarning, match="use texts="):
        assert np.array_equal(tokenize(sentences=["red"], length=5), tokenize(["red"], 5))
    mask = np.ones((2, 2), dtype=bool)
    with pytest.warns(DeprecationWarning, match="use target="):
        assert SegmentationMetrics().update(mask, truth=mask) == 1


def test_former_names_of_predictions_and_evaluations():
    engine, image = FakeEngine(oracle), Image.new("RGB", (20, 10), "red")
    expected = predict(engine, image, "red box")
    with pytest.warns(DeprecationWarning, match="predict") as caught:
        assert np.array_equal(predict(engine, picture=image, sentence="red box"), expected)
    messages = [str(warning.message) for warning in caught]
    assert messages == [
        "predict(picture=) is deprecated; use image=",
        "predict(sentence=) is deprecated; use expression=",
    ]
    tokens = []
    recording = FakeEngine(lambda images, rows: tokens.append(rows) or oracle(images, rows))
    evaluate(recording, Boxes(6), batch=6)
    evaluate(recording, Boxes(6), batch=6, shuffle_expressions=True)
    with pytest.warns(DeprecationWarning, match="use shuffle_expressions="):
        former = evaluate(recording, Boxes(6), batch=6, shuffle_sentences=True)
    plain, shuffled, last = tokens[1::2]  # each after a warm-up call
    assert np.array_equal(last, shuffled)
    assert not np.array_equal(last, plain)
    with pytest.warns(DeprecationWarning, match=r"Evaluation.cost is deprecated; use timing"):
        assert former.cost is former.timing
    parts = [evaluate(engine, Boxes(6), part=(k, 2)) for k in range(2)]
    with pytest.warns(DeprecationWarning, match=r"Evaluation.beside is deprecated; use merge"):
        merged = parts[1].beside(parts[0])
    assert merged.records == parts[1].merge(parts[0]).records
    verdict = gate([compare_logits(np.ones((1, 2, 2)), np.ones((1, 2, 2)))], "fp32")
    with pytest.warns(DeprecationWarning, match=r"Gate.figures is deprecated; use metrics"):
        assert verdict.figures is verdict.metrics


def test_former_options_of_tfanet_eval(capsys):
    command = typer.main.get_command(app)
    context = command.make_context("tfanet-eval", ["--gate-pictures", "none", "--shuffle-sentences"])
    assert context.params["gate_images"] == Path("none")
    assert context.params["shuffle_expressions"] is True
    assert capsys.readouterr().err.splitlines() == [
        "--gate-pictures is deprecated; use --gate-images",
        "--shuffle-sentences is deprecated; use --shuffle-expressions",
    ]
