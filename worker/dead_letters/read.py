"""Reads dead letters: why each record failed, where it was read, and the record itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from worker.batch import LENT_OFTEN, RENAMED_HEADERS, UNREAD_RECORD, Headers, Partition
from worker.dead_letters.compose import CONNECT, KEY_ADDED, OURS, TIMESTAMP, TRIMMED
from worker.errors import ConfigError

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
}
"""Names that ``--where`` accepts."""


def matcher(conditions: Iterable[str]) -> Callable[[Letter], bool]:
    """A function that says whether a letter meets every condition ``name=value``. Values of one name are alternatives.

    Raises:
        ConfigError: a condition has another form, or another name.
    """
    wanted: dict[str, set[str]] = {}
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals or name not in CONDITIONS:
            raise ConfigError(f"--where: got {condition}, expected {'=..., '.join(CONDITIONS)}=...")
        wanted.setdefault(name, set()).add(value)
    return lambda letter: all(CONDITIONS[name](letter) in values for name, values in wanted.items())
