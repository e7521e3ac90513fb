"""The two clients of a load measurement: a producer that takes one record at a time, a reader of what comes from now on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from worker.batch import Headers
from worker.errors import StartError
from worker.kafka.admin import Admin
from worker.kafka.properties import admin_properties, build, consumer_properties
from worker.kafka.tools import range_of
from worker.topics import is_pattern, matches

if TYPE_CHECKING:
    from worker.settings import Settings

FULL_QUEUE_WAIT_S = 0.01
DESCRIBE_S = 3.0


class LoadProducer:
    """Sends records of one topic to given partitions and tells where the broker put each of them.

    Args:
        properties: librdkafka properties, without a logger: a logger cannot travel to another process.
    """

    def __init__(self, properties: Mapping[str, Any], topic: str) -> None:
        self._producer = Producer({**properties, "logger": logging.getLogger("librdkafka")})
        self._topic = topic

    def send(
        self, value: bytes, partition: int, headers: Headers | None, placed: Callable[[int, int], None]
    ) -> None:
        """Queue one record, waiting while the queue is full.

        Args:
            placed: called with partition and offset once the broker has the record; not called if it refuses it.
        """

        def delivered(error: Any, message: Message) -> None:
            if error is None:
                place: Any = (message.partition(), message.offset())
                placed(*place)

        options: dict[str, Any] = {"headers": headers} if headers else {}
        while True:
            try:
                self._producer.produce(
                    self._topic, value, partition=partition, on_delivery=delivered, **options
                )
                return
            except BufferError:
                self._producer.poll(FULL_QUEUE_WAIT_S)

    def poll(self) -> None:
        """Serve acknowledgements without waiting."""
        self._producer.poll(0)

    def flush(self, timeout_s: float) -> None:
        """Wait for the acknowledgement of everything sent."""
        self._producer.flush(timeout_s)


def partitions_of(settings: Settings, topics: Sequence[str]) -> dict[str, int]:
    """How many partitions each of these topics has, and each topic that a pattern matches.

    Raises:
        StartError: the broker does not answer, a topic does not exist, or a pattern matches none.
    """
    with Admin(settings) as admin:
        known = admin.cluster().topics
        found: list[str] = []
        for topic in topics:
            if is_pattern(topic):
                there = [name for name in known if matches(topic, name)]
                if not there:
                    raise StartError(f"no topic on {admin.bootstrap} matches {topic}")
                found += there
            elif topic in known:
                found.append(topic)
            else:
                raise StartError(f"topic {topic} does not exist on {admin.bootstrap}")
        return {topic: len(known[topic].partitions) for topic in found}


def members_with(settings: Settings, topic: str) -> int | None:
    """How many members of the group own partitions of a topic; None where the broker does not say."""
    group = settings.kafka["group.id"]
    client = build(AdminClient, admin_properties(settings))
    try:
        (answer,) = client.describe_consumer_groups([group], request_timeout=DESCRIBE_S).values()
        members = answer.result(DESCRIBE_S).members
    except (KafkaException, TimeoutError, ValueError):
        return None
    owners = [
        member
        for member in members
        if member.assignment and any(place.topic == topic for place in member.assignment.topic_partitions)
    ]
    return len(owners) or None


class EndReader:
    """Reads some topics from their present ends on, without a group.

    Args:
        topics: topic -> number of partitions.
        embedded: the broker is librdkafka's own, which answers an empty fetch only when its wait is over.
        patience_s: how long the broker may take to name each partition's end.

    Raises:
        StartError: the ends cannot be read.
    """

    def __init__(
        self, settings: Settings, embedded: bool, topics: Mapping[str, int], patience_s: float
    ) -> None:
        properties = consumer_properties(settings, embedded)
        properties.pop("group.instance.id", None)
        # an answer that waits for the next fetch would look like latency of the worker
        properties |= {"group.id": "unused", "fetch.wait.max.ms": 2 if embedded else 500}
        self._consumer = build(Consumer, properties)
        places = [TopicPartition(name, i) for name, count in topics.items() for i in range(count)]
        try:
            for place in places:
                place.offset = range_of(self._consumer, place, patience_s)[1]
        except KafkaException as error:
            raise StartError(
                f"the ends of {', '.join(topics)} cannot be read: {error.args[0].str()}"
            ) from None
        self._consumer.assign(places)

    def read(self, timeout_s: float, most: int) -> list[Message]:
        """The records that have come, waiting up to ``timeout_s`` for the first of them; at most ``most`` + 1."""
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        messages = [first, *self._consumer.consume(most, 0)]
        return [message for message in messages if message.error() is None]

    def extent(self, topic: str, partitions: int, patience_s: float) -> tuple[int, int]:
        """Of any topic: how many offsets it holds now, and the sum of its partitions' ends.

        Raises:
            StartError: the broker does not answer.
        """
        try:
            ranges = [
                range_of(self._consumer, TopicPartition(topic, number), patience_s)
                for number in range(partitions)
            ]
        except KafkaException as error:
            raise StartError(f"the ends of {topic} cannot be read: {error.args[0].str()}") from None
        return sum(end - start for start, end in ranges), sum(end for _, end in ranges)

    def close(self) -> None:
        self._consumer.close()
