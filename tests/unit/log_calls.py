"""The log calls of the code, held to the table of events."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import worker
from worker.telemetry.log_events import Told

PACKAGE = Path(worker.__file__).parent
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
