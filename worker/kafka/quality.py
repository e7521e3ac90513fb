"""The topic of quality records: published with the positions that they cover, and read back one by one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from worker.batch import Partition
from worker.errors import TransactionFailed
from worker.kafka.properties import build, reader_properties
from worker.kafka.sink import Outputs
from worker.kafka.tools import range_of
from worker.kafka.topics import Topics
from worker.kafka.transactions import KafkaTransactions

if TYPE_CHECKING:
    from worker.settings import Settings

LOOKUP_S = 10.0
LAST_RECORD_S = 5.0
"""How long the last quality record of a partition is looked for."""
FLUSH_S = 20.0
CLOSE_S = 5.0

log = structlog.get_logger(module=__name__)


@dataclass(frozen=True)
class Publication:
    """What is published and committed of one partition."""

    number: int
    value: bytes | None
    commits: Callable[[str | None], dict[str, tuple[int, str]]]
    """Place of the record on the metrics topic -> topic -> (position, note)."""


def commits_of(
    publications: Sequence[Publication], places: Mapping[int, str]
) -> dict[Partition, tuple[int, str]]:
    """Partition -> (position, note) of all of them.

    Args:
        places: partition number -> place of its record.
    """
    return {
        Partition(topic, each.number): commit
        for each in publications
        for topic, commit in each.commits(places.get(each.number)).items()
    }


class _Records(Outputs[Producer]):
    """The producer of quality records."""

    client = Producer


class QualityTopic:
    """Publishes and reads quality records; for one thread.

    Args:
        found: the topics as the broker described them.
        group: of the positions that are committed with the records.

    Raises:
        ConfigError: librdkafka refuses the properties.
        StartError: the broker gives no transactional producer.
    """

    def __init__(self, settings: Settings, found: Topics, topic: str, group: str) -> None:
        self._settings, self._embedded = settings, found.embedded
        self._topic, self._partitions = topic, found.partitions[topic]
        self._group = group
        self._records = _Records(settings, found, f"{group}-{uuid.uuid4()}")
        self._transactions = KafkaTransactions(_NoSource(), self._records)  # type: ignore[arg-type]  # it is not asked here

    def poll(self) -> None:
        """Let the producer report errors."""
        self._records.poll()

    def publish(self, publications: Sequence[Publication], group: Any) -> dict[int, str]:
        """Publish records and commit positions in one transaction; returns the place of each record by partition.

        Args:
            group: the consumer's group metadata of this moment.

        Raises:
            TransactionFailed: nothing is visible, or the outcome is unknown; :meth:`abort` must follow.
        """
        places: dict[int, str] = {}
        failed: list[KafkaError] = []

        def delivered(number: int) -> Callable[[KafkaError | None, Any], None]:
            def report(error: KafkaError | None, message: Any) -> None:
                if error is not None:
                    failed.append(error)
                else:
                    places[number] = f"{message.partition()}/{message.offset()}"

            return report

        self._transactions.begin()
        producer = self._records.producer
        sent = [each for each in publications if each.value is not None]
        for each in sent:
            producer.produce(
                self._topic,
                each.value,
                f"{self._group}/{each.number}".encode(),
                partition=each.number % self._partitions,
                on_delivery=delivered(each.number),
            )
        left = producer.flush(FLUSH_S)
        if left or failed or len(places) < len(sent):
            why = failed[0].str() if failed else "the broker does not acknowledge records"
            raise TransactionFailed("aborted", why)
        commits = commits_of(publications, places)
        positions = {place: position for place, (position, _) in commits.items()}
        notes = {place: note for place, (_, note) in commits.items()}
        self._transactions.commit(positions, notes, group)
        return places

    @property
    def hung(self) -> bool:
        """Whether a call has outlived its own time-out, so that it may never return; for any thread."""
        return self._transactions.hung

    def abort(self) -> None:
        """Give up the open transaction. Waits as long as no broker answers.

        Raises:
            ClientFatal: no producer can be had any more.
        """
        self._transactions.abort()

    def read(self, place: str) -> bytes | None:
        """The record at ``partition/offset``; None where it is not there any more."""
        number, slash, offset = place.partition("/")
        if not slash or not number.isdecimal() or not offset.isdecimal():
            return None
        # Its transaction is committed, so it is read whatever transactions stand open before it.
        properties = {
            **reader_properties(self._settings, self._embedded),
            "isolation.level": "read_uncommitted",
        }
        consumer = build(Consumer, properties)
        try:
            at = TopicPartition(self._topic, int(number), int(offset))
            low, high = range_of(consumer, TopicPartition(at.topic, at.partition), LOOKUP_S)
            if not low <= at.offset < high:
                return None
            consumer.assign([at])
            deadline = time.monotonic() + LAST_RECORD_S
            while (left := deadline - time.monotonic()) > 0:
                message = consumer.poll(left)
                if message is not None and message.error() is None:
                    value: bytes | None = message.value()
                    return value if message.offset() == at.offset else None
        except KafkaException as error:
            log.warning(
                "the last quality record cannot be read", record=str(place), error=error.args[0].str()
            )
        finally:
            consumer.close()
        return None

    def close(self) -> None:
        """Close the producer."""
        self._records.close(CLOSE_S)


class _NoSource:
    """Stands where transactions could ask for positions."""
