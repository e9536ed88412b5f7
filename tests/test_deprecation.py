"""Former names of the Python API work for one version and warn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import tfanet_plugins
from tfanet.data import tokenize
from tfanet.data.refer import ReferDataset
from tfanet.deprecation import renamed_arguments
from tfanet_eval import SegmentationMetrics


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
