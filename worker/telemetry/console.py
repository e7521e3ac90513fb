"""A log line for people: local time, level, replica, event, and the fields in the order in which they were given."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterable, Mapping
from typing import Any

from worker.text import printable

LEVELS = {"debug": "debug", "info": "info", "warning": "warn", "error": "error", "critical": "fatal"}
NARROWEST = 80
"""Columns of a terminal that is narrower, or does not say."""
_INDENT = " " * 4
_SHOWN_ELSEWHERE = ("timestamp", "level", "event", "replica", "pid", "group", "module", "exception")
_SHOWN_HERE = {"started": "group", "replica started": "pid"}
"""By event one of these that it is about."""
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}
_PLACE = re.compile(r"(.+)/(\d+)")
_PLAIN = re.compile(r"[^\s\"'=]+")


def console_line(
    event: Mapping[str, Any],
    colors: bool = False,
    width: int | None = None,
    replicas: bool = False,
    now: time.struct_time | None = None,
) -> str:
    """One event as text.

    Args:
        event: with ``level`` and ``event``. What the reader of a terminal knows anyway, as the process id, is left out.
        width: columns of the terminal: a longer line goes on, indented, at a field; None: everything on one line.
        replicas: whether there is a column for the number of the replica.
        now: the local time to show; default now.
    """
    level = str(event.get("level", "info"))
    head = [
        time.strftime("%H:%M:%S", now or time.localtime()),
        _paint(f"{LEVELS.get(level, level):<5}", _COLOURS.get(level), colors),
    ]
    if replicas:
        head.append(f"{event.get('replica', '-')!s:<2}")
    head.append(_paint(printable(str(event.get("event", ""))), "1", colors))
    fields = [_field(key, value) for key, value in event.items() if key not in _SHOWN_ELSEWHERE]
    if (key := _SHOWN_HERE.get(str(event.get("event")), "")) in event:
        fields.insert(0, _field(key, event[key]))
    module = str(event.get("module", ""))
    if module and not module.startswith("worker"):
        fields.append(("module", module))
    shown = [f"{_paint(f'{key}=', '2', colors)}{value}" for key, value in fields]
    widths = [len(key) + 1 + len(value) for key, value in fields]
    used = 18 + 3 * replicas + len(str(event.get("event", "")))
    text = "  ".join([" ".join(head[:-1]), head[-1]]) + _joined(shown, widths, used, width)
    if "exception" in event:
        text += "\n" + textwrap.indent(printable(str(event["exception"]), keep="\n"), _INDENT)
    return text


def ranges(places: Iterable[str]) -> str:
    """Partitions as ranges: ``digits/0-2,5`` stands for four of them."""
    by_topic: dict[str, list[int]] = {}
    for place in places:
        topic, number = place.rsplit("/", 1)
        by_topic.setdefault(topic, []).append(int(number))
    return " ".join(f"{topic}/{_stretches(sorted(numbers))}" for topic, numbers in by_topic.items())


def _stretches(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _joined(shown: list[str], widths: list[int], used: int, width: int | None) -> str:
    """The fields behind the event, broken into lines at a field where they do not fit."""
    most = max(width, NARROWEST) if width is not None else None
    text = ""
    for field, length in zip(shown, widths, strict=True):
        if most is not None and used + 2 + length > most:
            text += "\n" + _INDENT * 4 + field
            used = len(_INDENT) * 4 + length
        else:
            text += "  " + field
            used += 2 + length
    return text


def _field(key: str, value: Any) -> tuple[str, str]:
    if key.endswith("_bytes") and isinstance(value, int) and value >= 1 << 20:
        return key.removesuffix("_bytes"), f"{value / (1 << 20):.0f}MiB"
    return key, _value(value)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple) and value and all(_is_place(item) for item in value):
        return ranges(value)
    match value:
        case list() | tuple():
            return ",".join(map(_value, value)) or "none"
        case Mapping():
            return ",".join(f"{_value(key)}:{_value(item)}" for key, item in value.items()) or "none"
        case bool() | None:
            return {True: "yes", False: "no", None: "none"}[value]
        case float():
            return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
        case _:
            text = printable(str(value))
            return text if _PLAIN.fullmatch(text) else '"' + text.replace('"', "'") + '"'


def _is_place(item: Any) -> bool:
    return isinstance(item, str) and _PLACE.fullmatch(item) is not None


def _paint(text: str, colour: str | None, colors: bool) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colors and colour else text
