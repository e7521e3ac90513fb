"""What ``dlq list`` counts: dead letters in groups, with how many records they are of, when, and one of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

from worker.cli.text import moment
from worker.dead_letters.compose import CONNECT
from worker.dead_letters.read import ID_HEADERS, REPLAY, Letter, Source
from worker.text import printable

MESSAGE_WIDTH = 60
"""Characters of an example's message in the table."""
KEY_WIDTH = 40
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def _message(letter: Letter) -> str:
    return " ".join(letter.text(CONNECT + "exception.message").split())


def _kind_of_message(letter: Letter) -> str:
    """A message without what differs from record to record: what it quotes, and its numbers."""
    return _NUMBER.sub("N", _QUOTED.sub("'...'", _message(letter)))


def _key(letter: Letter) -> str:
    if letter.key is None:
        return "none"
    try:
        return letter.key.decode()
    except UnicodeDecodeError:
        return f"0x{letter.key.hex()}"


def _partition(letter: Letter) -> str:
    source = letter.source
    return "unknown" if source is None else f"{source.partition.topic}/{source.partition.number}"


def _hour(letter: Letter) -> str:
    return moment(letter.timestamp_ms, lambda at: f"{at:%Y-%m-%d %H}:00")


GROUPS: dict[str, dict[str, Callable[[Letter], str]]] = {
    "reason": {
        "pipeline": lambda letter: letter.pipeline,
        "reason": lambda letter: letter.reason,
        "stage": lambda letter: letter.stage,
    },
    "message": {"reason": lambda letter: letter.reason, "message": _kind_of_message},
    "key": {"key": _key},
    "partition": {"partition": _partition},
    "hour": {"hour": _hour},
}
"""By the word of ``--by``: the names of the first columns, and what stands in them."""


@dataclass
class Group:
    """Dead letters that are alike."""

    count: int = 0
    records: set[object] = field(default_factory=set)
    """Identities of the records: several letters may be of one that was replayed."""
    replayed: int = 0
    """Letters of records that came back by a replay and failed again."""
    first_ms: int = 0
    last_ms: int = 0
    example: Letter | None = None
    """The newest one."""

    def add(self, letter: Letter) -> None:
        self.count += 1
        self.records.add(identity(letter))
        self.replayed += (letter.number(REPLAY) or 0) > 0
        at = letter.timestamp_ms
        self.first_ms = at if self.count == 1 else min(self.first_ms, at)
        if self.count == 1 or at >= self.last_ms:
            self.last_ms, self.example = at, letter


def identity(letter: Letter) -> object:
    """What letters of one record have in common. A replayed record has another place, and an id that says which it was."""
    given = next((text for name in ID_HEADERS if (text := letter.text(name))), "")
    return given or str(letter.source or Source(letter.partition, letter.offset))


def grouped(letters: Iterable[Letter], by: str) -> list[tuple[tuple[str, ...], Group]]:
    """The groups, the largest first; by hour in the order of time."""
    found: dict[tuple[str, ...], Group] = {}
    columns = GROUPS[by].values()
    for letter in letters:
        found.setdefault(tuple(column(letter) for column in columns), Group()).add(letter)
    if by == "hour":
        return sorted(found.items())
    return sorted(found.items(), key=lambda each: -each[1].count)


def as_object(by: str, names: tuple[str, ...], group: Group) -> dict[str, Any]:
    """One group for a program."""
    letter = group.example
    assert letter is not None
    return {
        **dict(zip(GROUPS[by], names, strict=True)),
        "count": group.count,
        "records": len(group.records),
        "replayed": group.replayed,
        "first_ms": group.first_ms,
        "last_ms": group.last_ms,
        "example": {"source": str(letter.source) if letter.source else None, "message": _message(letter)},
    }


def table(
    by: str, groups: Iterable[tuple[tuple[str, ...], Group]], zone: tzinfo | None = None
) -> Iterator[str]:
    """The groups for people, a line each below a heading."""
    names = list(GROUPS[by])
    rows = [[*names, "count", "records", "replayed", "first", "last", "example"]]
    for values, group in groups:
        letter = group.example
        assert letter is not None
        place = str(letter.source or f"{letter.partition.topic}/{letter.partition.number}/{letter.offset}")
        message = "" if by == "message" else f" {_message(letter)}"
        example = printable(f"{place}{message}")
        width = len(place) + MESSAGE_WIDTH
        cut = MESSAGE_WIDTH if by == "message" else KEY_WIDTH
        rows.append(
            [
                *(_short(printable(value or "?"), cut) for value in values),
                str(group.count),
                str(len(group.records)),
                str(group.replayed),
                _time(group.first_ms, zone),
                _time(group.last_ms, zone),
                _short(example, width),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = range(len(names), len(names) + 3)
    for row in rows:
        cells = [
            cell.rjust(width) if index in numbers else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _time(timestamp_ms: int, zone: tzinfo | None) -> str:
    return moment(timestamp_ms, lambda at: f"{at:%m-%d %H:%M:%S}", zone)
