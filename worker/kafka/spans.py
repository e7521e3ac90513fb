"""Reads a span of a topic: the records between two offsets or two times. Joins no group, commits nothing, makes no topic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from worker.errors import ConfigError, StartError
from worker.kafka.headers import readable_headers
from worker.kafka.properties import Client, build, check_properties, reader_properties
from worker.kafka.tools import LOOKUP_TIMEOUT_S, Record, look_up, range_of

SILENCE_S = 30.0
"""Longest wait for the next record."""
TICK_S = 0.5
AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a topic. Each bound is an offset, which needs ``partition``, or Unix milliseconds; None = there is none."""

    topic: str
    partition: int | None = None
    start_offset: int | None = None
    start_ms: int | None = None
    stop_offset: int | None = None
    """The last one is before this."""
    stop_ms: int | None = None
    """As above."""


class SpanReader:
    """Reads one span; a context manager. The end of a topic is where it ends when the reader is made.

    Raises:
        ConfigError: a client property is wrong; the broker finds no records by their time.
        StartError: the broker does not answer or refuses us; there is no such topic or partition.
    """

    def __init__(self, client: Client, span: Span) -> None:
        check_properties(client.kafka)
        partitions, embedded = look_up(client, [span.topic], written=False)
        count = partitions[span.topic]
        if span.partition is not None and span.partition >= count:
            raise StartError(f"{span.topic} has {count} partitions, expected one of 0 to {count - 1}")
        if embedded and (span.start_ms is not None or span.stop_ms is not None):
            raise ConfigError(
                f"topic:{span.topic}: the embedded broker finds no records by their time; expected offsets"
            )
        self._topic = span.topic
        properties = {**reader_properties(client, embedded), "enable.partition.eof": True}
        self._consumer = build(Consumer, properties)
        try:
            numbers = range(count) if span.partition is None else [span.partition]
            bounds = {number: self._bounds(span, number) for number in numbers}
        except KafkaException as error:
            self._consumer.close()
            raise StartError(f"topic {span.topic} cannot be read: {error.args[0].str()}") from None
        self._stops = {number: (start, stop) for number, (start, stop) in bounds.items() if start < stop}

    @property
    def most(self) -> int:
        """Most records in the span; fewer where some were compacted away."""
        return sum(stop - start for start, stop in self._stops.values())

    def __enter__(self) -> SpanReader:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def read(self) -> Iterator[Record]:
        """The records of the span, each partition in order.

        Raises:
            StartError: the broker refuses us, or falls silent.
        """
        left = {number: stop for number, (_, stop) in self._stops.items()}
        self._consumer.assign(
            [TopicPartition(self._topic, number, start) for number, (start, _) in self._stops.items()]
        )
        heard_s = time.monotonic()
        while left:
            messages: list[Any] = self._consumer.consume(AT_ONCE, TICK_S)
            if messages:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > SILENCE_S:
                raise StartError(f"topic {self._topic}: the broker sent nothing for {SILENCE_S:.0f} s")
            for message in messages:
                yield from self._taken(message, left)

    def _taken(self, message: Any, left: dict[int, int]) -> Iterator[Record]:
        """The record in a message, if it is in the span; takes out of ``left`` partitions that are done."""
        error: KafkaError | None = message.error()
        number = message.partition()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                left.pop(number, None)
            elif error.fatal() or error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise StartError(f"topic {self._topic} cannot be read: {error.str()}")
            return
        stop, offset = left.get(number), message.offset()
        if stop is not None and offset < stop:
            yield Record(
                self._topic,
                number,
                offset,
                message.timestamp()[1],
                message.key(),
                message.value(),
                readable_headers(message),
            )
        if stop is None or offset >= stop - 1:
            left.pop(number, None)
            self._consumer.pause([TopicPartition(self._topic, number)])

    def _bounds(self, span: Span, number: int) -> tuple[int, int]:
        """First offset, and the one behind the last."""
        low, high = range_of(self._consumer, TopicPartition(span.topic, number), LOOKUP_TIMEOUT_S)
        start = span.start_offset if span.start_ms is None else self._at(number, span.start_ms, high)
        stop = span.stop_offset if span.stop_ms is None else self._at(number, span.stop_ms, high)
        return max(low, start or 0), high if stop is None else min(high, stop)

    def _at(self, number: int, time_ms: int, high: int) -> int:
        """The offset of the first record from a time on."""
        wanted = [TopicPartition(self._topic, number, time_ms)]
        (found,) = self._consumer.offsets_for_times(wanted, timeout=LOOKUP_TIMEOUT_S)
        return int(found.offset) if found.offset >= 0 else high
