"""Every event of the log is in the table with its level and fields, and each warning names a page that says what to do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from markdown.extensions.toc import slugify

import worker
from worker.telemetry.log_events import Told, chapters, events, help_for

PACKAGE = Path(worker.__file__).parent
DOCS = PACKAGE.parent / "docs"
LEVELS = {name: name for name in ("debug", "info", "warning", "error", "critical", "exception")} | {
    "exception": "error"
}
VARIABLE = {"serving/steward.py", "telemetry/slowness.py", "telemetry/logs.py"}
"""Where the event stands in a table beside the call. Each is a constant there, and that it is in this table is tested."""


class Call(NamedTuple):
    """One place of the code that logs."""

    place: str
    level: str
    event: str | None
    fields: frozenset[str]
    more: bool
    """Further fields come from a mapping."""


def calls(source: str, place: str) -> Iterator[Call]:
    """The log calls of a module: those on ``log``, ``self._log`` or what ``get`` returns."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        receiver = ast.unparse(node.func.value)
        logs = receiver in ("log", "self._log") or receiver.startswith(("get(", "logs.get("))
        if node.func.attr not in LEVELS or not logs or not node.args:
            continue
        first = node.args[0]
        event = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
        level = LEVELS[node.func.attr]
        fields = {word.arg for word in node.keywords if word.arg is not None} - {"exc_info"}
        yield Call(
            f"{place}:{node.lineno}",
            level,
            event,
            frozenset(fields),
            any(w.arg is None for w in node.keywords),
        )


ALL = [
    call
    for path in sorted(PACKAGE.rglob("*.py"))
    for call in calls(path.read_text(encoding="utf-8"), str(path.relative_to(PACKAGE)))
]


def wrong(call: Call, table: dict[str, Told]) -> str | None:
    """What is not in the table of one call."""
    if call.event is None:
        return None if call.place.partition(":")[0] in VARIABLE else f"{call.place}: the event is no constant"
    told = table.get(call.event)
    if told is None:
        return f"{call.place}: {call.event!r} is not in the table"
    if call.level not in told.levels:
        return f"{call.place}: {call.event!r} is logged as {call.level}, the table says {told.levels}"
    if more := call.fields - {field.strip() for field in told.fields.split(",")}:
        return f"{call.place}: {call.event!r} has the fields {sorted(more)}, which the table lacks"
    return None


def test_every_event_of_the_code_is_in_the_table() -> None:
    """Each log call has a constant event that the table knows, at its level, with its fields."""
    assert len(ALL) > 100
    assert [found for call in ALL if (found := wrong(call, events()))] == []


def test_a_call_that_the_table_does_not_know_is_found() -> None:
    """An unknown event, a wrong level, an unknown field and an event made of values are each found."""
    table = events()
    for source, found in (
        ('log.info("nobody knows this")', "is not in the table"),
        ('log.warning("drained")', "is logged as warning"),
        ('self._log.info("drained", more=1)', "has the fields ['more']"),
        ('log.info(f"drained {1}")', "no constant"),
        ('log.info("drained")', None),
    ):
        (call,) = calls(source, "x.py")
        said = wrong(call, table)
        assert (said is None) if found is None else (said is not None and found in said), source


def test_every_event_of_the_table_is_in_the_code() -> None:
    """The table has no event that nothing logs, and no event twice."""
    texts = {
        node.value
        for path in PACKAGE.rglob("*.py")
        if path.name != "log_events.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(events()) - texts == set()
    assert len(events()) == sum(map(len, chapters().values()))


@pytest.mark.parametrize("told", [t for t in events().values() if t.help], ids=lambda told: told.event[:40])
def test_the_help_of_an_event_is_a_heading_of_the_documentation(told: Told) -> None:
    """The page exists and has the heading."""
    page, _, anchor = told.help.partition("#")
    text = (DOCS / page).read_text(encoding="utf-8")
    headings = [line.lstrip("#").strip() for line in text.splitlines() if line.startswith("#")]
    assert not anchor or anchor in {slugify(title.replace("`", ""), "-") for title in headings}


def test_every_warning_says_where_help_is() -> None:
    """Each event of the levels warning, error and critical names a page."""
    silent = [
        told.event
        for told in events().values()
        if {"warning", "error", "critical"} & {level.strip() for level in told.levels.split(",")}
        and told.event != "library"
        and not told.help
    ]
    assert silent == []
    assert help_for("broker lost") == "operations/runbooks.md#broker-lost"
    assert help_for("broker back") is None


def test_each_runbook_answers_the_same_four_questions() -> None:
    """What you see, whether data is lost, what to do, why: in each section of the runbooks, and no section is unused."""
    text = (DOCS / "operations" / "runbooks.md").read_text(encoding="utf-8")
    used = {told.help.partition("#")[2] for told in events().values() if "runbooks.md" in told.help}
    sections = text.split("\n## ")[1:]
    for section in sections:
        title = section.partition("\n")[0]
        places = [
            section.find(f"**{question}**")
            for question in ("What you see.", "Is data lost?", "Do this.", "Why.")
        ]
        assert -1 not in places, title
        assert places == sorted(places), title
        assert slugify(title, "-") in used, title
