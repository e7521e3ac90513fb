"""Messages of the client as columns: every field by one C method over the whole list, no Python per record."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

from confluent_kafka import Message

from worker.batch import Columns, Partition, Span
from worker.kafka.headers import header_column
from worker.sizes import wire_headers_bytes
from worker.topics import is_pattern

# One class stands for records and for events, so every field may be None to a type checker; a record's never is.
_topic: Any = Message.topic
_number: Any = Message.partition
_offset: Any = Message.offset
_timestamp_ms: Any = itemgetter(1)


class Gatherer:
    """Makes columns of the messages of one consumer.

    Args:
        topics: the topics it reads.
    """

    def __init__(self, topics: Sequence[str]) -> None:
        self._sole = topics[0] if len(topics) == 1 and not is_pattern(topics[0]) else None
        self._interned: dict[Partition, Partition] = {}

    def gather(self, messages: list[Any]) -> tuple[Columns, list[Span]]:
        """Columns in which each partition's records are consecutive and in order; one span per partition (epoch 0).

        Args:
            messages: records only, each partition's in order; they are sorted in place by partition.
        """
        if not messages:
            return Columns(), []
        counts = self._group(messages)
        offsets = list(map(_offset, messages))
        spans: list[Span] = []
        start = 0
        for partition, count in counts:
            stop = start + count
            spans.append(Span(partition, start, stop, offsets[stop - 1] + 1))
            start = stop
        columns = Columns(
            list(map(Message.value, messages)),
            list(map(Message.key, messages)),
            header_column(messages),
            list(map(_timestamp_ms, map(Message.timestamp, messages))),
            offsets,
            list(chain.from_iterable(repeat(partition, count) for partition, count in counts)),
        )
        return columns, spans

    def _group(self, messages: list[Any]) -> list[tuple[Partition, int]]:
        """Sort so that each partition's records are together, in their order; how many each has."""
        if self._sole is not None:
            numbers = list(map(_number, messages))
            ordered = sorted(numbers)
            if ordered != numbers:
                messages.sort(key=_number)
            return [(self.intern(Partition(self._sole, number)), count) for number, count in _runs(ordered)]
        messages.sort(key=_number)
        messages.sort(key=_topic)
        pairs = Counter(zip(map(_topic, messages), map(_number, messages), strict=True))
        return [(self.intern(Partition(*pair)), count) for pair, count in pairs.items()]

    def intern(self, partition: Partition) -> Partition:
        """One object per partition, however many records."""
        return self._interned.setdefault(partition, partition)


def record_bytes(message: Any) -> int:
    """Key, value and headers of one record; the text of an event."""
    if message.error() is not None:
        return len(message)
    [headers] = header_column([message])
    return len(message) + len(message.key() or b"") + wire_headers_bytes(headers)


def _runs(ordered: list[int]) -> Iterator[tuple[int, int]]:
    """Each number of a sorted list and how often it is there."""
    start = 0
    while start < len(ordered):
        stop = bisect_right(ordered, ordered[start], start)
        yield ordered[start], stop - start
        start = stop
