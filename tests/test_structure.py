"""The structure of the code: import direction, no circular imports, light commands, sizes, lint."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("tfanet", "tfanet_plugins", "tfanet_engines", "tfanet_export", "tfanet_eval")
FOLDERS = {
    "tfanet": ROOT / "tfanet",
    **{name: ROOT / name.removeprefix("tfanet_") / name for name in ORDER[1:]},
}
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
COMMANDS = {command: target.partition(":")[0] for command, target in SCRIPTS.items()}
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
SCRIPTS = [path for name in ("tests", "benchmarks") for path in sorted((ROOT / name).rglob("*.py"))]
MOST_LINES, MOST_BODY_LINES = 400, 65


def imports_of(path: Path) -> set[str]:
    """All modules that the file imports, inside functions too. Fails for relative imports.

    `from x import y` counts as x and x.y, since y may be a module.
    """
    names = set()
    for module, name in _imports(ast.parse(path.read_text(encoding="utf-8")), path):
        names |= {module, f"{module}.{name}"} if name else {module}
    return names


def _imports(tree: ast.AST, path: Path, *, for_types: bool = True) -> Iterator[tuple[str, str | None]]:
    """Module and imported name (None for `import module`) of every import.

    With `for_types` also those in `if TYPE_CHECKING` blocks.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            otherwise = ast.Module(body=node.orelse, type_ignores=[])
            yield from _imports(otherwise, path, for_types=False)
        else:
            yield from _imports(node, path, for_types=for_types)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("import tfanet_eval.tables as t, os", {"tfanet_eval.tables", "os"}),
        ("from tfanet_eval.tables import show", {"tfanet_eval.tables", "tfanet_eval.tables.show"}),
        ("from tfanet_eval import tables", {"tfanet_eval", "tfanet_eval.tables"}),
        ("def f():\n    from tfanet_eval import tables as t", {"tfanet_eval", "tfanet_eval.tables"}),
    ],
)
def test_every_form_of_import_counts(tmp_path, line, names):
    (tmp_path / "code.py").write_text(line)
    assert imports_of(tmp_path / "code.py") == names


@pytest.mark.parametrize("line", ["from . import cli", "from .cli import main", "from ..eval import cli"])
def test_relative_imports_are_rejected(tmp_path, line):
    (tmp_path / "code.py").write_text(line)
    with pytest.raises(AssertionError, match=r"code.py:1 is a relative import"):
        imports_of(tmp_path / "code.py")


def test_all_packages_have_sources():
    assert len(SOURCES) > 40


@pytest.mark.parametrize("package", ORDER)
def test_imports_follow_the_order_of_packages(package):
    forbidden = set(ORDER[ORDER.index(package) + 1 :])
    for path in sorted(FOLDERS[package].rglob("*.py")):
        wrong = {name for name in imports_of(path) if name.split(".")[0] in forbidden}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_no_circular_imports():
    """In the packages and the benchmarks, imports inside functions included, TYPE_CHECKING blocks excluded.

    `graphlib` raises `CycleError` with the modules of a cycle.
    """
    paths = {module_name(path): path for path in (*SOURCES, *(ROOT / "benchmarks").glob("*.py"))}
    graph = {name: imported_modules(name, path, set(paths)) for name, path in paths.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(paths)


def module_name(path: Path) -> str:
    """`tfanet_eval.cli.predict` for eval/tfanet_eval/cli/predict.py; the stem for a benchmark."""
    if path.parent == ROOT / "benchmarks":
        return path.stem
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "tfanet" else parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(name: str, path: Path, known: set[str]) -> set[str]:
    """The modules in `known` that it imports; `from x import y` means x.y if that is a module, else x."""
    imports = _imports(ast.parse(path.read_text(encoding="utf-8")), path, for_types=False)
    both = {(module, f"{module}.{imported}") for module, imported in imports}
    return {full if full in known else module for module, full in both} & known - {name}


def test_type_checking_blocks_and_submodules_in_the_import_graph(tmp_path):
    code = """
if TYPE_CHECKING:
    import p.types
else:
    import p.runtime
from p import sub, function
def f():
    import p.lazy
"""
    (tmp_path / "code.py").write_text(code)
    known = {"p", "p.types", "p.runtime", "p.sub", "p.lazy", "p.code"}
    expected = {"p", "p.runtime", "p.sub", "p.lazy"}
    assert imported_modules("p.code", tmp_path / "code.py", known) == expected


def test_command_lines_are_not_imported():
    """Nor are other modules of `tfanet_eval.cli`, outside it, except the types of its options."""
    folder, shared = FOLDERS["tfanet_eval"] / "cli", "tfanet_eval.cli.options"
    for path in SOURCES:
        imported = imports_of(path)
        wrong = {name for name in imported if name in COMMANDS.values()}
        if folder not in path.parents:
            wrong |= {name for name in imported if name.startswith("tfanet_eval.cli.")} - {shared}
            wrong = {name for name in wrong if not name.startswith(f"{shared}.")}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_packages_import_no_benchmark_or_test_module():
    """As top-level modules, as their folders are on the path of tests; `fakes` is a package."""
    top_level = {path.stem for path in SCRIPTS if path.parent.name != "fakes"}
    scripts = top_level - {"__init__"} | {"fakes"}
    for path in SOURCES:
        wrong = {name for name in imports_of(path) if name.split(".")[0] in scripts}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    """Keeps `--help` under a second."""
    code = (
        f"import sys, json, {COMMANDS[command]} as cli\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("tfanet-train", ["--recipe", "none"]),
        ("tfanet-train", ["--image-size", "100"]),
        ("tfanet-export", ["trt", "--recipe", "none"]),
        ("tfanet-eval", ["--resume"]),
    ],
)
def test_mistakes_are_reported_without_heavy_imports(command, arguments):
    code = (
        f"import sys, {COMMANDS[command]} as cli\n"
        f"sys.argv = {[command, *arguments]!r}\n"
        "try:\n    cli.main()\n"
        "except SystemExit as end:\n    sys.exit(100 if 'torch' in sys.modules else end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_installed_and_print_help(command):
    done = subprocess.run([Path(sys.executable).parent / command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Usage: " in done.stdout


def test_dataset_options_are_followed_by_split_by():
    """In every command that reads a data set, with the same help text."""
    following = {}
    for module in set(COMMANDS.values()):
        group = typer.main.get_command(importlib.import_module(module).app)
        for command in (group, *getattr(group, "commands", {}).values()):
            names = [option.name for option in command.params]
            if "dataset" in names:
                after = command.params[names.index("dataset") + 1]
                text = getattr(after, "help", "").replace("\\[", "[")  # escaped for rich
                following[module, command.name] = after.name, text
    assert following.pop(("tfanet.data.cli", "make"))[0] != "split_by"  # it writes a data set
    assert len(following) == 7
    assert set(following.values()) == {("split_by", "Refs file: unc, umd or google [unc; umd for refcocog].")}


def test_files_are_short():
    counts = {path: len(path.read_text("utf-8").splitlines()) for path in (*SOURCES, *SCRIPTS)}
    assert {str(path): count for path, count in counts.items() if count > MOST_LINES} == {}


def test_functions_are_short():
    """Lines of the body, without signature and docstring."""
    long = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": lines
        for path in (*SOURCES, *SCRIPTS)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := body_lines(node)) > MOST_BODY_LINES
    }
    assert long == {}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_body_lines_exclude_signature_and_docstring():
    code = 'def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    y = x\n    return (\n        y\n    )\n'
    assert [body_lines(node) for node in ast.parse(code).body] == [4]
    assert [body_lines(node) for node in ast.parse('def f():\n    """None."""\n').body] == [0]


def test_ruff_is_clean():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
