"""Clients for commands that read or write a topic. They join no group, commit nothing and report a failure in one sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)

from worker.batch import Headers
from worker.errors import StartError
from worker.kafka.admin import EMBEDDED_CLUSTER, Admin
from worker.kafka.headers import readable_headers
from worker.kafka.properties import Client, build, check_properties, reader_properties, writer_properties
from worker.kafka.rights import check_rights
from worker.kafka.uses import Use

LOOKUP_TIMEOUT_S = 10.0
FULL_QUEUE_WAIT_S = 0.1
NO_LEADER = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
"""Errors of a broker that does not know yet that a partition was created or moved."""
NO_LEADER_WAIT_S = 0.1
OFFSET_TAIL = -2000
"""Minus n: n records before the end of a partition (``RD_KAFKA_OFFSET_TAIL`` of librdkafka)."""
EMBEDDED_TAIL = 500
"""Records of each partition that are read of the embedded broker where others are asked for records since a time."""
PRODUCER_ID_S = 0.55
"""The client requests its producer id on a 500 ms timer. A record sent earlier waits for the id, and its latency grows."""


class Record(NamedTuple):
    """One record read."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    """Unix milliseconds; 0 when the broker gives none."""
    key: bytes | None
    value: bytes | None
    headers: Headers


class TopicWriter:
    """Sends records to one topic and waits for every acknowledgement.

    Raises:
        ConfigError: a client property is wrong.
        StartError: the broker does not answer or refuses us; the topic does not exist.
    """

    def __init__(self, client: Client, topic: str) -> None:
        check_properties(client.kafka)
        look_up(client, [topic], written=True)
        self.topic = topic
        self.acknowledged = 0
        self._failure: KafkaError | None = None
        self._producer = build(Producer, writer_properties(client))
        self._producer.poll(PRODUCER_ID_S)

    def send(self, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        """Queue one record, waiting while the queue is full.

        Raises:
            StartError: an earlier record failed, or this one is refused.
        """
        while True:
            try:
                self._producer.produce(
                    self.topic, value, key, headers=[*headers], on_delivery=self._on_delivery
                )
                break
            except BufferError:
                self.poll(FULL_QUEUE_WAIT_S)
            except KafkaException as error:
                raise StartError(f"topic {self.topic}: {error.args[0].str()}") from None
        self.poll(0.0)

    def poll(self, timeout_s: float) -> None:
        """Handle acknowledgements for up to ``timeout_s``.

        Raises:
            StartError: a record was not delivered.
        """
        self._producer.poll(timeout_s)
        if self._failure is not None:
            raise StartError(f"topic {self.topic}: a record was not delivered: {self._failure.str()}")

    def finish(self) -> Iterator[int]:
        """Wait for the missing acknowledgements; yields how many are missing a few times a second."""
        while left := self._producer.flush(0.2):
            yield left
            self.poll(0.0)
        self.poll(0.0)

    def _on_delivery(self, error: KafkaError | None, _message: Any) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self._failure = self._failure or error


class TopicReader:
    """Reads all partitions of some topics.

    Args:
        start: ``earliest``, ``latest`` for records that arrive after construction, or the Unix milliseconds from
            which on records are read.
        partition: only this one of each topic.
        offset: where to begin in place of ``start``.

    Raises:
        ConfigError: a client property is wrong.
        StartError: the broker does not answer or refuses us; a topic or the partition does not exist.
    """

    def __init__(
        self,
        client: Client,
        topics: list[str],
        start: str | int,
        *,
        partition: int | None = None,
        offset: int | None = None,
    ) -> None:
        check_properties(client.kafka)
        partitions, embedded = look_up(client, topics, written=False)
        self._offset = offset
        if offset is not None:
            start = "earliest"
        if partition is not None:
            for topic, count in partitions.items():
                if not 0 <= partition < count:
                    raise StartError(f"topic {topic} has no partition {partition}; expected 0 to {count - 1}")
        properties = reader_properties(client, embedded, isinstance(start, int))
        if (
            offset is not None
        ):  # else the client would begin anew, with a warning, and read all of the partition
            properties["auto.offset.reset"] = "error"
        self._consumer = build(Consumer, properties)
        named = {"earliest": OFFSET_BEGINNING, "latest": OFFSET_END}
        by_time = isinstance(start, int) and not embedded
        first = start if isinstance(start, int) else named[start]
        if isinstance(start, int) and embedded:
            first = OFFSET_TAIL - EMBEDDED_TAIL  # that broker finds no offset by its time
        places = [
            TopicPartition(topic, n, first if offset is None else offset)
            for topic, count in partitions.items()
            for n in range(count)
            if partition in (None, n)
        ]
        if start == "latest" or by_time:  # look the ends up now, so that no record from now on is missed
            try:
                places = self._consumer.offsets_for_times(places, timeout=LOOKUP_TIMEOUT_S)
            except KafkaException as error:
                raise StartError(f"the ends of the topics cannot be read: {error.args[0].str()}") from None
        self._consumer.assign(places)

    def read(self, timeout_s: float) -> list[Record]:
        """The records that have arrived; waits up to ``timeout_s`` for the first.

        Raises:
            StartError: the broker refuses us, or has nothing at ``offset``. Errors that the client recovers from are
                ignored.
        """
        first = self._consumer.poll(timeout_s)
        messages: list[Any] = [] if first is None else [first, *self._consumer.consume(100, 0)]
        records = []
        for message in messages:
            error: KafkaError | None = message.error()
            if error is None:
                place = (message.topic(), message.partition(), message.offset(), message.timestamp()[1])
                records.append(Record(*place, message.key(), message.value(), readable_headers(message)))
            elif error.fatal() or error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise StartError(f"kafka: {error.str()}")
            elif error.code() == KafkaError._AUTO_OFFSET_RESET and self._offset is not None:
                wanted = f"{message.topic()}/{message.partition()}/{self._offset}"
                raise StartError(f"there is no record {wanted}: it is not written yet, or deleted")
        return records

    def close(self) -> None:
        self._consumer.close()


def range_of(consumer: Consumer, place: TopicPartition, patience_s: float) -> tuple[int, int]:
    """First offset of a partition and the offset after its last record; waits while the partition has no leader.

    Raises:
        KafkaException: the broker does not answer.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            answer = consumer.get_watermark_offsets(place, timeout=max(0.1, deadline - time.monotonic()))
        except KafkaException as error:
            if error.args[0].code() not in NO_LEADER or time.monotonic() > deadline:
                raise
        else:
            if answer is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            return answer
        time.sleep(NO_LEADER_WAIT_S)


def look_up(client: Client, topics: list[str], written: bool) -> tuple[dict[str, int], bool]:
    """Partitions of each topic, and whether the broker is the embedded one.

    Raises:
        StartError: the broker does not answer; a topic does not exist, or a right is missing.
    """
    with Admin(client) as admin:
        cluster = admin.cluster()
        for topic in topics:
            if topic not in cluster.topics:
                raise StartError(f"topic {topic} does not exist on {admin.bootstrap}")
        embedded = str(cluster.cluster_id).startswith(EMBEDDED_CLUSTER)
        if not embedded:
            check_rights(admin, [Use(topic, "", written) for topic in topics])
    return {topic: len(cluster.topics[topic].partitions) for topic in topics}, embedded
