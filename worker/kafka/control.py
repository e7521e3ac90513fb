"""The control topic: read from its beginning, and written to. For one thread; no consumer group, no commits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from worker.errors import StartError
from worker.kafka.admin import EMBEDDED_CLUSTER, Admin
from worker.kafka.properties import build, client_id, reader_properties, writer_properties
from worker.kafka.rights import check_rights
from worker.kafka.rules import Rules, by_hand, check_control
from worker.kafka.tools import range_of
from worker.kafka.uses import Use, uses_of

if TYPE_CHECKING:
    from worker.settings import Settings

LOOK_UP_S = 2.0
"""Longest wait for the topic's end."""
MOST = 500

log = structlog.get_logger(module=__name__)


class ControlTopic:
    """The topic as a log: every record from the first one on, and a way to add one.

    Args:
        topic: it exists, with one partition.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """

    def __init__(self, settings: Settings, topic: str, embedded: bool = False) -> None:
        self.topic = topic
        self.by = client_id(settings)
        self._place = TopicPartition(topic, 0, OFFSET_BEGINNING)
        properties = {**reader_properties(settings, embedded), "isolation.level": "read_uncommitted"}
        properties["enable.partition.eof"] = True
        self._consumer = build(Consumer, properties)
        self._consumer.assign([self._place])
        # Not idempotent: a record may well be there twice, and such a producer never ends for good.
        ours = {"linger.ms": 0, "enable.idempotence": False, "max.in.flight": 1}
        self._producer = build(Producer, {**writer_properties(settings), **ours})
        self._next = 0
        """The offset up to which the topic was read."""
        self._refused = ""

    def read(self, timeout_s: float) -> list[bytes | None]:
        """The values of the records that have arrived, in order; waits up to ``timeout_s`` for the first."""
        self._producer.poll(0)
        first = self._consumer.poll(timeout_s)
        messages: list[Any] = [] if first is None else [first, *self._consumer.consume(MOST, 0)]
        values = []
        for message in messages:
            error: KafkaError | None = message.error()
            if error is None:
                values.append(message.value())
                self._next = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._next = max(self._next, message.offset())  # behind gaps, such as marks of transactions
            elif str(error) != self._refused:
                self._refused = str(error)
                log.warning("the control topic cannot be read", topic=self.topic, error=error.str())
        return values

    def end(self, timeout_s: float = LOOK_UP_S) -> int | None:
        """The offset behind the last record that is there now; None: no broker said."""
        try:
            return range_of(self._consumer, self._place, timeout_s)[1]
        except KafkaException:
            return None

    def reached(self, end: int) -> bool:
        """Whether everything before an offset was read."""
        return self._next >= end

    def write(self, key: str, value: bytes) -> None:
        """Have a record written. It is there once it is read back: this neither waits nor promises."""
        try:
            self._producer.produce(self.topic, value, key.encode(), partition=0)
        except (BufferError, KafkaException) as error:
            log.warning("the control topic cannot be written", topic=self.topic, error=str(error))
        self._producer.poll(0)

    def close(self, budget_s: float) -> None:
        """Send what waits, for at most so long."""
        self._producer.flush(budget_s)
        self._consumer.close()


def open_control(settings: Settings, make: bool = True) -> ControlTopic:
    """Connect to the control topic of the settings.

    Args:
        make: create it if it is missing and ``output.create`` is there.

    Raises:
        StartError: it is missing, has several partitions, is not compacted, or a right is missing.
    """
    assert settings.control is not None
    topic = settings.control.topic
    uses: list[Use] = [use for use in uses_of(settings) if use.topic == topic]
    with Admin(settings) as admin:
        cluster = admin.cluster()
        embedded = str(cluster.cluster_id).startswith(EMBEDDED_CLUSTER)
        if make and topic not in cluster.topics and not embedded:
            admin.create(uses)
            cluster = admin.cluster()
        if topic not in cluster.topics:
            how = by_hand(admin.bootstrap, topic)
            raise StartError(
                f"control.topic: topic {topic} does not exist on {admin.bootstrap}; make it by {how}"
            )
        if not embedded:
            check_rights(admin, uses)
        rules = admin.rules([topic])[topic] if not embedded else Rules()
        check_control(topic, {topic: len(cluster.topics[topic].partitions)}, rules, admin.bootstrap)
    return ControlTopic(settings, topic, embedded)
