"""Command lines are an interface: every command and option of version 0.1 exists, with its default.

`cli_options.json` is the released list; `python tests/test_cli_options.py` writes the present one, to add new
options. A renamed option keeps its former name for one version (`tfanet.console.deprecated_options`), so
nothing leaves the list without a new version.
"""

from __future__ import annotations

import importlib
import json
import tomllib
from pathlib import Path

import typer

SNAPSHOT = Path(__file__).parent / "cli_options.json"
SCRIPTS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"][
    "scripts"
]
MODULES = {command: target.partition(":")[0] for command, target in SCRIPTS.items()}


def options() -> dict[str, dict[str, str]]:
    """By command line ("tfanet-export onnx") the options, all their names in one key, with their default."""
    result = {}
    for command, module in MODULES.items():
        group = typer.main.get_command(importlib.import_module(module).app)
        subcommands = getattr(group, "commands", {})
        result[command] = parameters(group)
        result |= {f"{command} {name}": parameters(sub) for name, sub in sorted(subcommands.items())}
    return {command: values for command, values in result.items() if values}


def parameters(command: typer.core.TyperCommand) -> dict[str, str]:
    return {
        " ".join([*parameter.opts, *parameter.secondary_opts]): f"default {parameter.default}"
        for parameter in command.params
        if "--help" not in parameter.opts
    }


def test_every_released_option_exists_with_its_default():
    present, missing = options(), []
    for command, released in json.loads(SNAPSHOT.read_text("utf-8")).items():
        here = present.get(command, {})
        by_name = {name: value for names, value in here.items() for name in names.split()}
        for names, value in released.items():
            missing += [f"{command} {name} ({value})" for name in names.split() if by_name.get(name) != value]
    assert missing == []


def test_list_contains_every_option():
    released = json.loads(SNAPSHOT.read_text("utf-8"))
    known = {command: {n for names in o for n in names.split()} for command, o in released.items()}
    new = [
        f"{command} {name}"
        for command, here in options().items()
        for names in here
        for name in names.split()
        if name not in known.get(command, ())
    ]
    assert new == [], "add them: python tests/test_cli_options.py"


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(options(), indent=1) + "\n", encoding="utf-8")
