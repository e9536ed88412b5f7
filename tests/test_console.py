"""Deprecated option names: accepted with a line on stderr, and absent from the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from tfanet.console import deprecated_options, new_app

app = new_app("Test command.")


@app.command(cls=deprecated_options({"--rate": "--lr", "--picture": "--image", "--swift": "--fast"}))
def command(
    lr: Annotated[float | None, typer.Option(min=0.0)] = None,
    image: Annotated[list[Path] | None, typer.Option()] = None,
    fast: Annotated[bool, typer.Option("--fast")] = False,
) -> None:
    typer.echo(f"{lr} {image and [path.name for path in image]} {fast}")


def invoke(*arguments: str):
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("arguments", "values", "messages"),
    [
        ([], "None None False", ""),
        (["--lr", "0.5", "--image", "a", "--fast"], "0.5 ['a'] True", ""),
        (["--rate", "0.5"], "0.5 None False", "--rate is deprecated; use --lr\n"),
        (["--rate=0"], "0.0 None False", "--rate is deprecated; use --lr\n"),
        (["--rate", "0.5", "--lr", "2"], "2.0 None False", "--rate is deprecated; use --lr\n"),
        (["--lr", "2", "--rate", "0.5"], "2.0 None False", "--rate is deprecated; use --lr\n"),
        (
            ["--picture", "a", "--picture", "b"],
            "None ['a', 'b'] False",
            "--picture is deprecated; use --image\n",
        ),
        (["--swift"], "None None True", "--swift is deprecated; use --fast\n"),
    ],
)
def test_a_deprecated_name_sets_the_present_option(arguments, values, messages):
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, values + "\n", messages)


def test_a_deprecated_name_has_the_same_bounds():
    result = invoke("--rate", "-1")
    assert result.exit_code == 2
    assert "--rate" in result.stderr


def test_help_names_present_options_only():
    shown = invoke("--help").stdout
    assert all(name in shown for name in ("--lr", "--image", "--fast"))
    assert not any(name in shown for name in ("--rate", "--picture", "--swift"))
