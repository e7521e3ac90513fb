"""The two clients of a load measurement: a producer that takes one record at a time, a reader of what comes from now on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from worker.batch import Headers
from worker.errors import StartError
from worker.kafka.properties import build, consumer_properties
from worker.kafka.tools import range_of

if TYPE_CHECKING:
    from worker.settings import Settings

FULL_QUEUE_WAIT_S = 0.01


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

    def close(self) -> None:
        self._consumer.close()
