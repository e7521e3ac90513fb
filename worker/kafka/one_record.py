"""Reads one record by its place, for commands that look at it. Joins no group, commits nothing and makes no topic."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from worker.batch import Partition
from worker.errors import StartError
from worker.kafka.headers import readable_headers
from worker.kafka.properties import Client, build, check_properties, reader_properties
from worker.kafka.tools import Record, look_up, range_of

ANSWER_S = 30.0
"""Longest wait for an answer of the broker."""
TICK_S = 0.1


class RecordReader:
    """Reads single records; a context manager.

    Args:
        topics: those that may be asked for.

    Raises:
        ConfigError: a client property is wrong.
        StartError: the broker does not answer or refuses us; a topic does not exist.
    """

    def __init__(self, client: Client, topics: list[str]) -> None:
        check_properties(client.kafka)
        self._partitions, embedded = look_up(client, topics, written=False)
        properties = {**reader_properties(client, embedded), "enable.partition.eof": True}
        self._consumer = build(Consumer, properties)

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def read(self, partition: Partition, offset: int) -> Record:
        """The record in one place.

        Raises:
            StartError: there is none in that place, and the sentence says why; or the broker does not give it.
        """
        topic, number = partition
        where = f"{topic}/{number}/{offset}"
        count = self._partitions[topic]
        if number >= count:
            raise StartError(f"{where}: {topic} has {count} partitions, expected one of 0 to {count - 1}")
        low, high = self._range(partition)
        if low == high:
            raise StartError(f"{where}: there is no record in partition {number} of {topic}")
        if offset < low:
            raise StartError(
                f"{where}: no longer there; the oldest record of the partition is at offset {low}"
            )
        if offset >= high:
            raise StartError(
                f"{where}: not there yet; the newest record of the partition is at offset {high - 1}"
            )
        self._consumer.assign([TopicPartition(topic, number, offset)])
        found = self._in_place(offset, where)
        if found is None:
            raise StartError(
                f"{where}: no record has this offset; it was compacted away, or it is a mark of a transaction, or a "
                "record of one that was aborted"
            )
        return found

    def _in_place(self, offset: int, where: str) -> Record | None:
        """The record in the assigned place; None where the broker has only later ones, or none."""
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            message: Any = self._consumer.poll(TICK_S)
            if message is None:
                continue
            error: KafkaError | None = message.error()
            if error is None and message.offset() != offset:
                return None
            if error is None:
                place = (message.topic(), message.partition(), message.offset(), message.timestamp()[1])
                return Record(*place, message.key(), message.value(), readable_headers(message))
            if error.code() == KafkaError._PARTITION_EOF:
                return None
            if error.fatal() or error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise StartError(f"{where}: cannot be read: {error.str()}")
        raise StartError(f"{where}: the broker sent nothing of it for {ANSWER_S:.0f} s")

    def _range(self, partition: Partition) -> tuple[int, int]:
        """First offset, and the offset after the last record."""
        try:
            return range_of(self._consumer, TopicPartition(*partition), ANSWER_S)
        except KafkaException as error:
            raise StartError(f"topic {partition.topic} cannot be read: {error.args[0].str()}") from None
