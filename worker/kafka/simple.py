"""Two small clients without a group, for tools that look at topics rather than work on them."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from worker.batch import Headers

log = logging.getLogger("librdkafka")


class Received(NamedTuple):
    """One record read."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class SimpleProducer:
    """Sends keyed records where a Java producer would put them.

    Args:
        properties: librdkafka properties on top of the bootstrap address.
    """

    def __init__(self, bootstrap: str, properties: dict[str, Any] | None = None) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "partitioner": "murmur2_random",
                "linger.ms": 0,
                "logger": log,
                **(properties or {}),
            }
        )

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers) -> None:
        self._producer.produce(topic, value=value, key=key, headers=[*headers])
        self._producer.poll(0)

    def close(self, timeout_s: float) -> int:
        """Wait for acknowledgements; how many records are left without one."""
        return int(self._producer.flush(timeout_s))


class SimpleReader:
    """Reads whole topics from their beginning.

    Args:
        topics: name -> number of partitions; known beforehand, so nothing need be asked of the broker.
    """

    def __init__(self, bootstrap: str, topics: dict[str, int]) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "unused",  # required by the client; there is no subscription and no commit
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 5,  # the embedded broker answers an empty fetch only after all of it
                "logger": log,
            }
        )
        self._consumer.assign(
            [
                TopicPartition(name, i, OFFSET_BEGINNING)
                for name, count in topics.items()
                for i in range(count)
            ]
        )

    def read(self, timeout_s: float) -> list[Received]:
        """What has come, waiting up to ``timeout_s`` for the first record.

        Raises:
            KafkaException: the client cannot go on. What it recovers from by itself is only logged.
        """
        first = self._consumer.poll(timeout_s)
        messages: list[Any] = [] if first is None else [first, *self._consumer.consume(1000, 0)]
        received = []
        for message in messages:
            error: KafkaError | None = message.error()
            if error is None:
                place = (message.topic(), message.partition(), message.offset())
                received.append(Received(*place, message.key(), message.value(), message.headers() or []))
            elif error.fatal():
                raise KafkaException(error)
            else:
                log.warning("%s", error.str())
        return received

    def close(self) -> None:
        self._consumer.close()
