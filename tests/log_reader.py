"""Somebody who has the log alone: names what happened, when it began and ended, and which replica it befell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

ENDS = {
    "broker lost": "broker back",
    "falling behind": "caught up",
    "model slow": "model at speed again",
    "dead letters": None,
    "custom code failed": None,
    "replica died": "replica started",
    "lost": "assigned",
    "drain": "drained",
}
"""By the event with which something begins the event with which it ends; None: it says itself when it was."""


@dataclass
class Happening:
    """One thing that happened."""

    what: str
    replica: int | None
    began_s: float
    """Unix seconds."""
    ended_s: float | None
    fields: dict[str, Any]


def lines(text: str) -> list[dict[str, Any]]:
    """The log's whole lines; the last one may be half written. One that is not JSON is an error of whoever wrote it."""
    return [orjson.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def happenings(log: Iterable[dict[str, Any]]) -> list[Happening]:
    """What happened, in the order in which it began."""
    found: list[Happening] = []
    for line in log:
        event, replica = line["event"], line.get("replica")
        at_s = datetime.fromisoformat(line["timestamp"]).timestamp()
        for each in found:
            if each.ended_s is None and ENDS[each.what] == event and each.replica == replica:
                each.ended_s = at_s
        if event in ENDS and not any(
            each.what == event and each.replica == replica and each.ended_s is None for each in found
        ):
            ended_s = at_s if ENDS[event] is None else None
            found.append(Happening(event, replica, at_s, ended_s, line))
    return found
