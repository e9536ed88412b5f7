"""Options of a plan: given ones override the recipe's, which override the defaults."""

from __future__ import annotations

import pytest

from tfanet.errors import UserError
from tfanet_engines import BuildOptions
from tfanet_export.pipeline import plan_settings


@pytest.mark.parametrize(
    ("given", "fp16", "recipe", "expected"),
    [
        ({}, None, None, (BuildOptions(), False)),
        ({"target": None, "batch": (1, 2, 4)}, True, None, (BuildOptions(batch=(1, 2, 4)), True)),
        ({}, None, "rtx4090", (BuildOptions(target="rtx4090", batch=(1, 1, 8)), True)),
        ({"target": "sm86"}, False, "rtx4090", (BuildOptions(target="sm86", batch=(1, 1, 8)), False)),
    ],
    ids=["defaults", "given", "recipe", "given and recipe"],
)
def test_given_options_override_the_recipe(given, fp16, recipe, expected):
    assert plan_settings(given, fp16, recipe, "tensorrt-rtx") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("opt-level = 3", "tensorrt-rtx has no --opt-level"),
        ("levels = 3", r"recipe .*mine\.toml.*'levels'"),
        ("fp16 = 1", r"recipe .*mine\.toml"),
        ("=", r"recipe .*mine\.toml"),
    ],
    ids=["of another backend", "unknown option", "wrong type", "not TOML"],
)
def test_invalid_recipe_is_rejected(tmp_path, content, message):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(content)
    with pytest.raises(UserError, match=message):
        plan_settings({}, None, str(recipe), "tensorrt-rtx")


def test_invalid_option_is_rejected():
    with pytest.raises(UserError, match="largest <= 1024"):
        plan_settings({"batch": (1, 1, 2000)}, None, None, "tensorrt-rtx")
