"""Build options from recipes and command lines."""

from __future__ import annotations

import pytest

from tfanet.errors import UserError
from tfanet_engines.options import BuildOptions, read_recipe

RTX = "tensorrt-rtx"


@pytest.mark.parametrize("backend", [RTX, "tensorrt"])
def test_the_bundled_recipe(backend):
    values = read_recipe("rtx4090", backend)
    assert values.pop("fp16") is True
    options = BuildOptions.of(values, backend)
    assert (options.target, options.batch) == ("rtx4090", (1, 1, 8))
    assert (options.opt_level, options.workspace) == ((5, 8192) if backend == "tensorrt" else (None, None))


def test_a_recipe_file_and_the_table_of_its_library(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('target = "sm89"\n[tensorrt]\nopt-level = 5\n[tensorrt-rtx]\nworkspace = 64\n')
    assert BuildOptions.of(read_recipe(str(path), RTX), RTX) == BuildOptions(target="sm89", workspace=64)


def test_none_counts_as_not_given():
    assert BuildOptions.of({"target": None, "batch": [1, 2, 4]}, RTX) == BuildOptions(batch=(1, 2, 4))


INVALID_VALUES = [
    pytest.param(
        {"colour": 1}, "recipe x has the unknown option 'colour'; known: target, batch", id="unknown"
    ),
    pytest.param({"target": 89}, "recipe x is invalid: target: .* valid string", id="number-for-text"),
    pytest.param({"batch": [1, 8]}, r"recipe x is invalid: batch", id="batch-of-two"),
    pytest.param({"batch": [1, True, 8]}, r"recipe x is invalid: batch\[1\]: .* valid integer", id="boolean"),
    pytest.param({"workspace": 1.5}, "recipe x is invalid: workspace: .* integer", id="fraction"),
    pytest.param({"tf32": 1}, "recipe x is invalid: tf32: .* valid boolean", id="number-for-boolean"),
    pytest.param({"hardware-compat": "all"}, "recipe x is invalid: hardware_compat", id="choice"),
    pytest.param({"opt-level": 3}, "tensorrt-rtx has no --opt-level", id="unsupported"),
]


@pytest.mark.parametrize(("values", "message"), INVALID_VALUES)
def test_invalid_values_are_refused(values, message):
    with pytest.raises(UserError, match=message) as caught:
        BuildOptions.of(values, RTX, "recipe x")
    assert "\n" not in str(caught.value)


INVALID_RECIPES = [
    pytest.param("= 1", "is not valid TOML", id="not-toml"),
    pytest.param("tensorrt = 1", r"tensorrt must be a table, \[tensorrt\]", id="no-table"),
    pytest.param('fp16 = "yes"', "fp16 = 'yes', which is not true or false", id="fp16"),
    pytest.param("target = 1979-05-27", "unknown target GPU '1979-05-27'", id="date"),
]


@pytest.mark.parametrize(("text", "message"), INVALID_RECIPES)
def test_invalid_recipes_are_refused(tmp_path, text, message):
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        BuildOptions.of(read_recipe(str(path), RTX), RTX)


@pytest.mark.parametrize(
    ("name", "message"),
    [("rtx5090", "unknown recipe 'rtx5090'; .*rtx4090"), ("no-such.toml", "no-such.toml does not exist")],
)
def test_missing_recipes_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        read_recipe(name, RTX)
