"""The house: import direction, light command lines, file sizes, lint."""

from __future__ import annotations

import ast
import graphlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("tfanet", "tfanet_plugins", "tfanet_engines", "tfanet_export", "tfanet_eval")
FOLDERS = {
    "tfanet": ROOT / "tfanet",
    **{name: ROOT / name.removeprefix("tfanet_") / name for name in ORDER[1:]},
}
COMMANDS = {
    "tfanet-train": "tfanet.training.cli",
    "tfanet-data": "tfanet.data.cli",
    "tfanet-count": "tfanet.counts_cli",
    "tfanet-export": "tfanet_export.cli",
    "tfanet-eval": "tfanet_eval.cli.evaluate",
    "tfanet-benchmark": "tfanet_eval.cli.benchmark",
    "tfanet-predict": "tfanet_eval.cli.predict",
}
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "open_clip",
    "tensorrt_rtx",
    "tensorrt",
    "triton",
    "mamba_ssm",
)
SOURCES = [path for folder in FOLDERS.values() for path in sorted(folder.rglob("*.py"))]


def imports_of(path: Path) -> set[str]:
    """Every module named in an import statement of the file, wherever it stands; never a relative one.

    `from x import y` names both x and x.y, since y may be a module.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("import tfanet_eval.tables as t, os", {"tfanet_eval.tables", "os"}),
        ("from tfanet_eval.tables import show", {"tfanet_eval.tables", "tfanet_eval.tables.show"}),
        ("from tfanet_eval import tables", {"tfanet_eval", "tfanet_eval.tables"}),
        ("def f():\n    from tfanet_eval import tables as t", {"tfanet_eval", "tfanet_eval.tables"}),
    ],
)
def test_imports_are_found_in_every_form(tmp_path, line, names):
    (tmp_path / "code.py").write_text(line)
    assert imports_of(tmp_path / "code.py") == names


@pytest.mark.parametrize("line", ["from . import cli", "from .cli import main", "from ..eval import cli"])
def test_relative_imports_are_refused(tmp_path, line):
    (tmp_path / "code.py").write_text(line)
    with pytest.raises(AssertionError, match=r"code.py:1 is a relative import"):
        imports_of(tmp_path / "code.py")


def test_the_sources_are_found():
    assert len(SOURCES) > 40


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package):
    forbidden = set(ORDER[ORDER.index(package) + 1 :])
    for path in sorted(FOLDERS[package].rglob("*.py")):
        wrong = {name for name in imports_of(path) if name.split(".")[0] in forbidden}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_no_module_of_tfanet_imports_itself_through_others():
    """Imports inside functions count, those for type checkers do too; packages' `__init__` do not."""
    folder = FOLDERS["tfanet"]
    modules = {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts): path
        for path in folder.rglob("*.py")
        if path.stem != "__init__"
    }
    graph = {name: (imports_of(path) & modules.keys()) - {name} for name, path in modules.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the names


def test_nobody_imports_a_command_line():
    for path in SOURCES:
        wrong = {name for name in imports_of(path) if name in COMMANDS.values()}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    """This is what keeps `--help` under a second."""
    code = (
        f"import sys, json, {COMMANDS[command]} as cli\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_installed_and_help(command):
    done = subprocess.run([Path(sys.executable).parent / command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Usage: " in done.stdout


def test_whoever_reads_a_data_set_is_told_how_it_is_split():
    """`--split-by` follows `--dataset` in every command that reads one, in the same words."""
    found = {}
    for module in set(COMMANDS.values()):
        group = typer.main.get_command(importlib.import_module(module).app)
        for command in (group, *getattr(group, "commands", {}).values()):
            names = [option.name for option in command.params]
            if "dataset" in names:
                after = command.params[names.index("dataset") + 1]
                text = getattr(after, "help", "").replace("\\[", "[")  # escaped for rich
                found[module, command.name] = after.name, text
    assert found.pop(("tfanet.data.cli", "make"))[0] != "split_by"  # it writes one
    assert len(found) == 7
    assert set(found.values()) == {("split_by", "Refs file: unc, umd or google [unc; umd for refcocog].")}


def test_files_are_at_most_400_lines():
    paths = [*SOURCES, *(path for name in ("tests", "benchmarks") for path in (ROOT / name).rglob("*.py"))]
    long = {path.name: count for path in paths if (count := len(path.read_text("utf-8").splitlines())) > 400}
    assert long == {}


def test_ruff_is_clean():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
