"""The package's public names, and that importing them loads no runtime."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tfanet_engines


@pytest.mark.parametrize("name", tfanet_engines.__all__)
def test_every_public_name_exists(name):
    assert getattr(tfanet_engines, name) is not None


def test_the_deprecated_name_of_parity_metrics():
    with pytest.warns(DeprecationWarning, match="ParityFigures is deprecated; use ParityMetrics"):
        assert tfanet_engines.ParityFigures is tfanet_engines.ParityMetrics


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tfanet_engines.no_such_name


def test_importing_does_not_load_the_runtimes():
    code = (
        "import sys, tfanet_engines.build, tfanet_engines.run, tfanet_engines.parity\n"
        "print({'torch', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'tensorrt', 'rich'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
