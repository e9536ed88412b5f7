"""The table of refusals in docs/engines.md against the code, in both directions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ENGINES = ROOT / "engines" / "tfanet_engines"
RUNNER = (
    "engine", "run", "run_onnx", "run_plan", "run_torch", "context_pool", "gpu", "ort_session",
    "runtime_cache", "permissions", "trust", "weights", "onnx_file", "sidecar",
)  # fmt: skip
SHARED = {
    ENGINES / "trt_api.py": ("find_backend", "_import"),
    ROOT / "tfanet" / "files.py": ("require_file",),
    ROOT / "tfanet" / "validation.py": ("_invalid",),
    ROOT / "tfanet" / "checkpoint.py": ("load_model", "_metadata", "_config"),
}
"""Functions that the runner calls in other modules."""


def text(node):
    """A message as in the table: … for every value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(text(part) for part in node.values))
    if isinstance(node, ast.BinOp):
        return re.sub("…+", "…", text(node.left) + text(node.right))
    return "…"


def messages_in(tree):
    """The arguments of `UserError` and `one_line`; the latter adds ONNX Runtime's message."""
    messages = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "UserError":
                messages.add(text(node.args[0]))
            elif node.func.id == "one_line":
                messages.add(f"{text(node.args[0])}: …")
    return messages - {"…: …"}  # in `one_line` itself


def messages_of_the_code():
    messages = set()
    for name in RUNNER:
        messages |= messages_in(ast.parse((ENGINES / f"{name}.py").read_text(encoding="utf-8")))
    for path, functions in SHARED.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name in functions:
                messages |= messages_in(node)
    return messages


def rows():
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    section = page.split("\n## Refusals\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(.+?)` \| (.+?) \|$", section, re.MULTILINE)


def test_every_message_has_a_row_and_every_row_a_message():
    listed = [message for message, _ in rows()]
    assert len(listed) == len(set(listed))
    assert set(listed) == messages_of_the_code()
    assert len(listed) > 50


def test_every_row_has_a_remedy():
    assert all(len(advice) > 10 for _, advice in rows())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('UserError("plain")', "plain"), ("UserError(f'{a} is {b!r}')", "… is …"),
        ("with one_line(f'{a} fails'): pass", "… fails: …"), ('UserError(f"{a} is {b}{c}" + d)', "… is …"),
    ],
)  # fmt: skip
def test_messages_are_read_from_code(code, message):
    assert messages_in(ast.parse(code)) == {message}
