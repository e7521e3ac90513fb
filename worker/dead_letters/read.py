"""Reads dead letters: why each record failed, where it was read, and the record itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import NamedTuple, get_args

from worker.batch import LENT_OFTEN, RENAMED_HEADERS, UNREAD_RECORD, Headers, Partition
from worker.dead_letters.compose import CONNECT, KEY_ADDED, OURS, TIMESTAMP, TRIMMED
from worker.errors import ConfigError, Reason, Stage

REPLAY = "streaminfer.replay"
"""Header of a replayed record: how many times it has been replayed."""
DIGITS_MAX = 18
"""Most digits of a number in a header. A longer number is not ours: anyone may write to the topic."""
ID_HEADERS = ("ce_id", "x-request-id")
"""Headers that give a result's id if the record's value has none."""


class Source(NamedTuple):
    """The partition and offset at which the record of a dead letter was read."""

    partition: Partition
    offset: int

    def __str__(self) -> str:
        return f"{self.partition.topic}/{self.partition.number}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Letter:
    """One record of the dead-letter topic."""

    partition: Partition
    offset: int
    timestamp_ms: int
    """Unix milliseconds: the failed record's, or the broker's if a header holds the failed record's."""
    key: bytes | None
    value: bytes | None
    headers: Headers

    def text(self, name: str) -> str:
        """The last header of that name as text; empty if there is none."""
        value = next((value for found, value in reversed(self.headers) if found == name), None)
        return (value or b"").decode(errors="replace")

    def number(self, name: str) -> int | None:
        """The last header of that name as a number; None if it is not a number or is longer than ``DIGITS_MAX``."""
        text = self.text(name)
        return int(text) if len(text) <= DIGITS_MAX and text.isascii() and text.isdecimal() else None

    @property
    def reason(self) -> str:
        return self.text("streaminfer.error.reason")

    @property
    def stage(self) -> str:
        return self.text(CONNECT + "stage")

    @property
    def pipeline(self) -> str:
        return self.text(CONNECT + "connector.name")

    @property
    def topic(self) -> str:
        """The topic the record was read from."""
        return self.text(CONNECT + "topic")

    @property
    def source(self) -> Source | None:
        """Where the failed record was read; None if the headers do not say, so that no worker wrote this letter."""
        partition, offset = self.number(CONNECT + "partition"), self.number(CONNECT + "offset")
        if not self.topic or partition is None or offset is None:
            return None
        return Source(Partition(self.topic, partition), offset)

    @property
    def trimmed(self) -> bool:
        """Whether the record's value is missing: it did not fit the dead-letter topic, or it could not be read."""
        return bool(self.text(TRIMMED[1])) or any(name == UNREAD_RECORD for name, _ in self.headers)


def original(letter: Letter, source: Source) -> Letter:
    """The record as it was before it failed, addressed to its old partition, ready to be sent again.

    The headers about the failure are removed. ``streaminfer.replay`` is increased by 1; a value that is no number is
    taken for 0. A record without an id has its source as the id of its result. A replay gives it a new source, so
    ``x-request-id`` carries the old one.
    """
    record = failed(letter, source)
    headers = [pair for pair in record.headers if pair[0] != REPLAY]
    if not any(letter.text(name) for name in ID_HEADERS):
        headers.append(("x-request-id", str(source).encode()))
    headers.append((REPLAY, b"%d" % ((letter.number(REPLAY) or 0) + 1)))
    return replace(record, headers=headers)


def failed(letter: Letter, source: Source) -> Letter:
    """The record as it was before it failed: its old place, and without the headers about the failure."""
    added = {*OURS, *TRIMMED, TIMESTAMP, KEY_ADDED, RENAMED_HEADERS, LENT_OFTEN}
    stamp = letter.number(TIMESTAMP)
    timestamp_ms = letter.timestamp_ms if stamp is None else stamp
    headers = [pair for pair in letter.headers if pair[0] not in added and not pair[0].startswith(CONNECT)]
    return replace(
        letter,
        partition=source.partition,
        offset=source.offset,
        timestamp_ms=timestamp_ms,
        key=None if letter.text(KEY_ADDED) else letter.key,
        headers=headers,
    )


CONDITIONS: dict[str, Callable[[Letter], str]] = {
    "reason": lambda letter: letter.reason,
    "stage": lambda letter: letter.stage,
    "pipeline": lambda letter: letter.pipeline,
    "topic": lambda letter: letter.topic,
    "partition": lambda letter: str(letter.source.partition.number) if letter.source else "",
    "key": lambda letter: (letter.key or b"").decode(errors="replace"),
    "message": lambda letter: letter.text(CONNECT + "exception.message"),
}
"""Names that ``--where`` accepts."""
CLOSED: dict[str, tuple[str, ...]] = {"reason": get_args(Reason), "stage": get_args(Stage)}
"""Conditions whose values are known: another one can only be a slip."""


def matcher(
    conditions: Iterable[str], since_ms: int | None = None, until_ms: int | None = None
) -> Callable[[Letter], bool]:
    """A function that says whether a letter meets every condition ``name=value``. Values of one name are alternatives.

    A message meets a condition that it contains, in any case of its letters; anything else must be equal.

    Args:
        since_ms: the record's timestamp is this or later, in Unix milliseconds.
        until_ms: it is earlier than this.

    Raises:
        ConfigError: a condition has another form, another name, or a value that none can have.
    """
    wanted: dict[str, set[str]] = {}
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals or name not in CONDITIONS:
            raise ConfigError(f"--where: got {condition}, expected {'=..., '.join(CONDITIONS)}=...")
        if name in CLOSED and value not in CLOSED[name]:
            near = get_close_matches(value, CLOSED[name], n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(CLOSED[name])}"
            raise ConfigError(f"--where: there is no {name} {value}; {hint}")
        wanted.setdefault(name, set()).add(value.lower() if name == "message" else value)
    contained = wanted.pop("message", None)

    def matches(letter: Letter) -> bool:
        if since_ms is not None and letter.timestamp_ms < since_ms:
            return False
        if until_ms is not None and letter.timestamp_ms >= until_ms:
            return False
        if contained is not None:
            message = CONDITIONS["message"](letter).lower()
            if not any(part in message for part in contained):
                return False
        return all(CONDITIONS[name](letter) in values for name, values in wanted.items())

    return matches
