"""The commands in README.md and docs/ exist, with their options; the figure has the shapes of the model."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer

from tfanet.config import PRESETS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]


def commands_in(page: str) -> list[list[str]]:
    """The words of each of our commands in code, from the command's name on."""
    fenced = re.findall(r"^```.*?^```", page, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    .+", page, re.MULTILINE)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL))
    commands = []
    for code in (*fenced, *indented, *inline):
        for line in code.replace("\\\n", " ").replace("\n>", "\n").splitlines():
            for start in re.finditer(r"(?<![\w./-])tfanet-[a-z]+(?=\s|$)", line):
                commands.append(_words(line[start.start() :]))
    return [words for words in commands if words[0] in SCRIPTS]


def _words(text: str) -> list[str]:
    """The words up to the end of the command: a comment, a pipe or another command."""
    text = re.split(r"\s#|\s*[|;&]\s*", text)[0]
    try:
        return shlex.split(text)
    except ValueError:  # a quote that continues on the next line
        return text.split()


@cache
def command(name: str) -> Any:
    module = SCRIPTS[name].partition(":")[0]
    return typer.main.get_command(importlib.import_module(module).app)


def unknown(words: list[str]) -> list[str]:
    """The options in `words` that the command does not have."""
    here = command(words[0])
    rest = words[1:]
    if rest and rest[0] in getattr(here, "commands", {}):
        here, rest = here.commands[rest[0]], rest[1:]
    known = {option for parameter in here.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    return sorted(used - known - {"--help"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_options_exist(page):
    for words in commands_in(page.read_text(encoding="utf-8")):
        assert unknown(words) == [], shlex.join(words)


def test_commands_are_found_in_the_pages():
    commands = [words for page in PAGES for words in commands_in(page.read_text(encoding="utf-8"))]
    assert len(commands) > 60
    assert {words[0] for words in commands} >= {"tfanet-train", "tfanet-export", "tfanet-eval", "tfanet-data"}


def test_unknown_option_is_found():
    page = (
        "```console\n$ torchrun --nnodes 2 --no-python tfanet-train --epochs 1 \\\n>   --epoch 2 # --x\n```\n"
    )
    page += "`tfanet-export trt --fp16 --sheet a.png`"
    assert [unknown(words) for words in commands_in(page)] == [["--epoch"], ["--sheet"]]


def test_dataflow_figure_has_the_shapes_of_base():
    base = PRESETS["base"]
    elements = ElementTree.parse(ROOT / "docs" / "dataflow.svg").iter("{http://www.w3.org/2000/svg}text")
    texts = ["".join(element.itertext()) for element in elements]
    for stride, channels in zip((4, 8, 16, 32), base.vmamba_dims, strict=True):
        side = base.image_size // stride
        assert any(f"[B, {channels}, {side}, {side}]" in text for text in texts), stride
