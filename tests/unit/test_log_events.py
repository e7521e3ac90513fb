"""Every event of the log is in the table with its level and fields, and each warning names a page that says what to do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from log_calls import calls, wrong
from markdown.extensions.toc import slugify

import worker
from worker.telemetry.log_events import Told, chapters, events, help_for

PACKAGE = Path(worker.__file__).parent
DOCS = PACKAGE.parent / "docs"


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
