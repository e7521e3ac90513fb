"""Rules of the house that a program can check: size of files and functions, and the words that users read."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import log_calls
import pytest

import worker
from worker.telemetry.log_events import events

PACKAGE = Path(worker.__file__).parent
ROOT = PACKAGE.parent
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if "native" not in path.parts]
FILE_LINES, FUNCTION_LINES = 400, 60
REASON = "This file is long because"
OLD_WORDS = re.compile(r"\bown code\b", re.IGNORECASE)
"""It is *custom code*: one word for one thing."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_of_a_size_to_read(path: Path) -> None:
    """A module has at most 400 lines, unless its docstring says why, and no function has more than 60."""
    assert too_large(path.read_text(encoding="utf-8")) == []


def test_what_is_too_large_is_found() -> None:
    """A long module without a reason and a long function are found; a long module that gives its reason is not."""
    lines = "x = 1\n" * (FILE_LINES + 1)
    assert too_large(lines) == ["the file"]
    assert too_large(f'"""What it is.\n\n{REASON} of x.\n"""\n{lines}') == []
    function = "def long():\n" + "    x = 1\n" * FUNCTION_LINES
    assert too_large(function) == ["long"]
    assert too_large(f"class A:\n    {function.replace(chr(10), chr(10) + '    ').rstrip()}\n") == ["long"]


def too_large(text: str) -> list[str]:
    """What has too many lines in a module: the file itself, then its functions by name."""
    module = ast.parse(text)
    excused = REASON in (ast.get_docstring(module) or "")
    found = ["the file"] if len(text.splitlines()) > FILE_LINES and not excused else []
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                found.append(node.name)
    return found


def test_every_package_and_module_says_what_it_is() -> None:
    """Each module of the worker that holds code begins with a docstring."""
    silent = []
    for path in SOURCES:
        module = ast.parse(path.read_text(encoding="utf-8"))
        if module.body and ast.get_docstring(module) is None:
            silent.append(str(path.relative_to(ROOT)))
    assert silent == []


def test_every_event_of_the_log_is_in_its_table() -> None:
    """Each log call has a constant event that `telemetry/log_events.py` knows, at its level, with its fields."""
    assert len(log_calls.ALL) > 100
    assert [found for call in log_calls.ALL if (found := log_calls.wrong(call, events()))] == []


def test_users_read_one_word_for_one_thing() -> None:
    """Messages, documentation and schemas say `custom code`, never `own code`."""
    read = [*SOURCES, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "schemas").rglob("*.json")]
    history = ROOT / "CHANGELOG.md"
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in read
        if path != history
        for line in path.read_text(encoding="utf-8").splitlines()
        if OLD_WORDS.search(line)
    ]
    assert found == []
