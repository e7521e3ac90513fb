"""Reads the dead-letter topic from beginning to end, and sends records back to their input topics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from worker.batch import Partition
from worker.dead_letters.read import Letter, Source
from worker.errors import StartError
from worker.kafka.admin import EMBEDDED_CLUSTER, Admin
from worker.kafka.headers import readable_headers
from worker.kafka.properties import (
    LARGEST_CLIENT_LIMIT,
    build,
    check_properties,
    consumer_properties,
    producer_properties,
)
from worker.kafka.rights import check_rights
from worker.kafka.tools import range_of
from worker.kafka.uses import Use
from worker.topics import Topics, is_pattern

if TYPE_CHECKING:
    from worker.settings import Settings

ANSWER_S = 30.0
"""Longest wait for an answer of the broker."""
TICK_S = 0.1
ANY_PARTITION = -1

log = structlog.get_logger(module=__name__)


class LetterReader:
    """Reads the dead-letter topic without joining a group; a context manager.

    The committed offsets of the group ``<group.id>.dlq-replay`` hold the progress of replays. No consumer joins it.

    Raises:
        ConfigError: a client property is wrong.
        StartError: the broker does not answer; the topic does not exist or may not be read.
    """

    def __init__(self, settings: Settings) -> None:
        check_properties(settings.kafka)
        self.topic = settings.dead_letter.topic
        self._settings = settings
        with Admin(settings) as admin:
            cluster = admin.cluster()
            self._embedded = str(cluster.cluster_id).startswith(EMBEDDED_CLUSTER)
            if self.topic not in cluster.topics:
                raise StartError(f"dead_letter.topic: topic {self.topic} does not exist on {admin.bootstrap}")
            if not self._embedded:
                check_rights(admin, [Use(self.topic, "dead_letter.topic", written=False)])
        self.partitions = {name: len(topic.partitions) for name, topic in cluster.topics.items()}
        """Every topic of the cluster -> number of partitions."""
        self._group = f"{settings.kafka['group.id']}.dlq-replay"
        properties = consumer_properties(settings, self._embedded)
        properties.pop("group.instance.id", None)
        properties |= {
            "group.id": self._group,
            "auto.offset.reset": "earliest",  # retention may remove records while we read
            "enable.partition.eof": True,
        }
        self._consumer = build(Consumer, properties)

    def __enter__(self) -> LetterReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._consumer.close()

    def check_replay(self, topics: Iterable[str]) -> None:
        """Check that records can be sent back to these input topics and that progress can be committed.

        Raises:
            StartError: a topic does not exist, or a right is missing.
        """
        there = [topic for topic in self.partitions if topic in Topics(topics)]
        named = [topic for topic in topics if not is_pattern(topic)]
        uses = [Use(topic, "input.topics", written=True) for topic in sorted({*there, *named})]
        for use in uses:
            if use.topic not in self.partitions:
                raise StartError(
                    f"input.topics: topic {use.topic} does not exist; records cannot go back to it"
                )
        if not self._embedded:
            with Admin(self._settings) as admin:
                check_rights(admin, uses, self._group)

    def read(self, starts: Mapping[int, int]) -> Iterator[Letter]:
        """The dead letters that exist now, in order within each partition, without those that arrive meanwhile.

        Args:
            starts: partition -> first offset wanted. Partitions not in it are read from their earliest offset.

        Raises:
            StartError: the broker refuses us or no longer answers.
        """
        ends: dict[int, int] = {}
        assigned = []
        for number in range(self.partitions[self.topic]):
            place = TopicPartition(self.topic, number)
            low, high = self._range(place)
            place.offset = max(low, starts.get(number, low))
            if place.offset < high:
                ends[number] = high
                assigned.append(place)
        self._consumer.assign(assigned)
        heard = time.monotonic()
        while ends:
            message: Any = self._consumer.poll(TICK_S)
            if message is None:
                if time.monotonic() - heard > ANSWER_S:
                    raise StartError(
                        f"dead_letter.topic: the broker sent nothing of {self.topic} for {ANSWER_S:.0f} s"
                    )
                continue
            number, error = message.partition(), message.error()
            if error is None and message.offset() < ends.get(number, 0):
                yield _letter(message)
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                self._raise_if_final(error)
                continue
            heard = time.monotonic()  # taken here, because the caller may have worked on the letter for long
            if error is not None or message.offset() + 1 >= ends.get(number, 0):
                ends.pop(
                    number, None
                )  # an end-of-partition error counts too: markers may follow the last record

    def progress(self) -> dict[int, int]:
        """Partition -> first offset not replayed yet, for partitions with replayed letters."""
        places = [TopicPartition(self.topic, number) for number in range(self.partitions[self.topic])]
        try:
            committed = self._consumer.committed(places, timeout=ANSWER_S)
        except KafkaException as error:
            raise StartError(
                f"dlq: how far replaying has come cannot be read: {error.args[0].str()}"
            ) from None
        return {place.partition: place.offset for place in committed if place.offset >= 0}

    def keep_progress(self, offsets: Mapping[int, int]) -> None:
        """Commit the first offset of each partition that was not replayed yet."""
        places = [TopicPartition(self.topic, number, offset) for number, offset in offsets.items()]
        if not places:
            return
        try:
            self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            raise StartError(
                f"dlq: how far replaying has come cannot be kept: {error.args[0].str()}"
            ) from None

    def _range(self, place: TopicPartition) -> tuple[int, int]:
        """First offset, and the offset after the last record."""
        try:
            return range_of(self._consumer, place, ANSWER_S)
        except KafkaException as error:
            raise StartError(
                f"dead_letter.topic: {self.topic} cannot be read: {error.args[0].str()}"
            ) from None

    def _raise_if_final(self, error: KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise StartError(f"dead_letter.topic: {self.topic} cannot be read: {error.str()}")
        log.warning("dead letters cannot be read now", error=error.str())


class Returns:
    """Sends records back to the partitions they came from.

    Args:
        partitions: topic -> number of partitions.
        landed: called with the place of each record that the broker has acknowledged.
    """

    def __init__(
        self,
        settings: Settings,
        partitions: Mapping[str, int],
        landed: Callable[[Source], None] | None = None,
    ) -> None:
        properties = producer_properties(settings)
        properties |= {
            "message.timeout.ms": int(ANSWER_S * 1000),
            "message.max.bytes": LARGEST_CLIENT_LIMIT,  # the topic had the record before, so it fits
        }
        self._partitions = partitions
        self._landed = landed
        self._producer = build(Producer, properties)
        self._failure: str | None = None

    def send(self, record: Letter, keep_time: bool, arrived: Callable[[], None]) -> None:
        """Queue one record; :meth:`settle` waits until it is acknowledged.

        Args:
            keep_time: keep the record's timestamp instead of the time of sending.
            arrived: called inside a later :meth:`wait` or :meth:`settle`, when the broker has acknowledged the record.
        """
        topic, number = record.partition
        arguments: dict[str, Any] = (
            {"timestamp": record.timestamp_ms} if keep_time and record.timestamp_ms > 0 else {}
        )
        while True:
            try:
                self._producer.produce(
                    topic,
                    record.value,
                    record.key,
                    number if number < self._partitions[topic] else ANY_PARTITION,
                    headers=[*record.headers],
                    on_delivery=partial(self._on_delivery, arrived),
                    **arguments,
                )
                return
            except BufferError:
                self._producer.poll(TICK_S)

    def wait(self, seconds: float) -> None:
        """Wait up to ``seconds`` for acknowledgements and handle them."""
        self._producer.poll(seconds)

    def settle(self) -> None:
        """Wait until every record sent is acknowledged.

        Raises:
            StartError: a record was not acknowledged; the message says why.
        """
        if self._failure is None and self._producer.flush(ANSWER_S + 5):
            self._failure = self._failure or f"no acknowledgement within {ANSWER_S:.0f} s"
        if self._failure:
            raise StartError(f"dlq replay: {self._failure}")

    def _on_delivery(self, arrived: Callable[[], None], error: KafkaError | None, message: Any) -> None:
        if error is None:
            arrived()
            if self._landed is not None:
                self._landed(Source(Partition(message.topic(), message.partition()), message.offset()))
        elif self._failure is None:
            self._failure = f"topic {message.topic()} did not take a record: {error.str()}"


def _letter(message: Any) -> Letter:
    return Letter(
        Partition(message.topic(), message.partition()),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        readable_headers(message),
    )
