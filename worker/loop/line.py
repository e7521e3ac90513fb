"""Records that wait for something outside, one by one: a partition's line of them, and what each has asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from worker.batch import (
    RENAMED_HEADERS,
    SKIPPED_RECORD,
    UNREAD_RECORD,
    Columns,
    Fetched,
    Headers,
    Partition,
    Span,
)
from worker.errors import Rejection
from worker.outside import Need, Outside, Sized
from worker.sizes import held_bytes

_MARKS = (RENAMED_HEADERS, UNREAD_RECORD, SKIPPED_RECORD)


@dataclass(slots=True, eq=False)
class Asked:
    """Something that was asked for, or will be."""

    outside: Outside
    need: Need
    record: Record
    """The first record that needs it."""
    others: list[Record] = field(default_factory=list)
    """Further records that wait for the same answer."""
    reserved: int = 0
    """Bytes of the budget that the call under way may fill."""
    sized: Sized | None = None
    """A payload that waits for bytes."""
    tries: int = 0
    """Calls that brought nothing."""
    missed: int = 0
    """Of these, the ones whose answer was that it is not there yet."""
    missing_ns: int = 0
    """Monotonic clock at the first such answer."""


@dataclass(slots=True, eq=False)
class Record:
    """One record that waits."""

    partition: Partition
    offset: int
    next_offset: int
    """What to commit once it and all before it are done."""
    epoch: int
    serial: int
    """Counts the records in the order of their take."""
    taken_ns: int
    columns: Columns
    """The record alone."""
    held_bytes: int
    payload: bytes | None
    """What a decoder would read: the record's value, until something else was fetched for it."""
    deadline_ms: float | None = None
    """Unix milliseconds."""
    chain: Sequence[Outside] = ()
    """Whom it needs."""
    step: int = 0
    """Which of them is asked now."""
    asked: Asked | None = None
    fetched_bytes: int = 0
    """Bytes of the payload, where it was fetched."""
    rejection: Rejection | None = None
    began_ns: int = 0
    """Monotonic clock when something was first asked for; 0 = nothing was."""
    ended_ns: int = 0
    ready: bool = False
    gone: bool = False
    """It is not ours any more."""

    @classmethod
    def of(cls, columns: Columns, row: int, span: Span, serial: int, taken_ns: int) -> Record:
        """One row of a take."""
        alone, offset = columns.select([row]), columns.offsets[row]
        last = row == span.stop - 1
        return cls(
            span.partition,
            offset,
            span.next_offset if last else offset + 1,
            span.epoch,
            serial,
            taken_ns,
            alone,
            held_bytes(alone),
            columns.values[row],
        )

    def __lt__(self, other: Record) -> bool:
        return self.serial < other.serial

    @property
    def headers(self) -> Headers | None:
        return self.columns.headers[0]

    def is_ordinary(self, max_bytes: int) -> bool:
        """Whether it may be looked into: admission refuses it otherwise, whatever it needs."""
        headers = self.headers
        if headers and any(headers[0][0] is mark for mark in _MARKS):
            return False
        return len(self.payload or b"") <= max_bytes

    def begin_again(self) -> None:
        """Forget what was fetched."""
        self.payload, self.fetched_bytes = self.columns.values[0], 0
        self.step, self.ready, self.ended_ns = 0, False, 0

    def fetched(self) -> Fetched:
        """What has become of it here."""
        fetch_us = max(0, self.ended_ns - self.began_ns) // 1000 if self.began_ns else 0
        payload = self.payload if self.fetched_bytes else None
        return Fetched(self.taken_ns, fetch_us, payload, self.rejection)


def columns_of(records: Sequence[Record]) -> Columns:
    """Records side by side again, with what was fetched for them."""
    found = Columns(fetched=[])
    for record in records:
        found.extend(record.columns)
    found.fetched = [record.fetched() for record in records]
    return found


def spans_of(records: Sequence[Record]) -> Iterator[Span]:
    """One span for each stretch of records of one partition and epoch."""
    start = 0
    for row, record in enumerate(records):
        following = records[row + 1] if row + 1 < len(records) else None
        if following is None or following.partition != record.partition or following.epoch != record.epoch:
            yield Span(record.partition, start, row + 1, record.next_offset, record.epoch)
            start = row + 1
