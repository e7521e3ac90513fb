"""Results and labels for ``streaminfer score``: one consumer that owns equal partitions of all of them, and transactions.

The assignor is ``range``: with equally many partitions in every topic, and members that subscribe to the same topics, it
gives one member the partitions of one number (Kafka's documentation of ``RangeAssignor``). Quality records and positions
are one transaction; where there is no topic for the records, positions are committed alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from worker.errors import ClientFatal, StartError, TransactionFailed
from worker.kafka.notes import opened, sealed
from worker.kafka.properties import (
    DEFAULT_TOPIC_LIMIT,
    MEMBERSHIP,
    build,
    check_properties,
    consumer_properties,
)
from worker.kafka.quality import Publication, QualityTopic, commits_of
from worker.kafka.tools import look_up, range_of
from worker.kafka.topics import Topics

if TYPE_CHECKING:
    from worker.settings import Settings

BATCH = 2_000
LOOKUP_S = 10.0
AGAIN_S = 1.0
"""Between two questions for committed positions while no broker answers."""
AWAY_S = 10.0
"""After a question for a partition's end that no broker answered, none is asked for so long."""
FAILURES_MAX = 3
"""After so many commits in a row that failed, over ``limits.stall_s``, the process ends, to be started again."""

log = structlog.get_logger(module=__name__)


class Owner(Protocol):
    """Told of partitions, on the thread that reads."""

    def on_own(self, places: Mapping[int, Mapping[str, Place]]) -> dict[int, dict[str, int]]:
        """These partitions are ours: what is committed of each topic, by number. Answers where each is read from."""

    def ahead(self, number: int) -> list[str]:
        """Topics whose partition of this number must not be read now."""

    def stopping(self) -> bool:
        """Whether the process ends: nothing is waited for any more."""

    def on_leave(self) -> None:
        """All partitions leave, and may still be committed."""

    def on_lost(self) -> None:
        """All partitions have left: nothing may be committed."""


@dataclass(frozen=True)
class Place:
    """One topic's partition as the broker has it."""

    low: int
    high: int
    committed: int | None
    """None: nothing is committed, or it is not there any more."""
    note: str


class ScoredTopics:
    """See the module; for one thread.

    Args:
        topics: results topics and the labels topic, with equally many partitions.
        metrics: the topic for quality records; None: there is none.

    Raises:
        ConfigError: librdkafka refuses the properties.
        StartError: the broker gives no transactional producer.
    """

    def __init__(
        self, settings: Settings, topics: Sequence[str], found: Topics, metrics: str | None, owner: Owner
    ) -> None:
        self.group = score_group(settings)
        self.ends: dict[tuple[str, int], int] = {}
        """(topic, number) -> the offset at which it ended when it was last read to its end."""
        self.at_end: set[tuple[str, int]] = set()
        self.assigned: dict[int, dict[str, Place]] = {}
        self._topics = list(topics)
        self._embedded = found.embedded
        self._owner = owner
        self._stall_s = settings.limits.stall_s
        self._failures = 0
        self._failing_s = 0.0
        """When the first of the failures was."""
        self._ask_again_s = 0.0
        """No broker answered: none is asked for a partition's end before this time (monotonic seconds)."""
        self._epoch = 0
        """Counts how often reading began anew."""
        self._paused: set[tuple[str, int]] = set()
        self._consumer = build(Consumer, _properties(settings, self.group, found.embedded))
        self.quality = QualityTopic(settings, found, metrics, self.group) if metrics is not None else None
        self._consumer.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, timeout_s: float) -> list[Any]:
        """Records that have arrived; waits up to ``timeout_s`` for the first.

        Raises:
            StartError: a right is missing.
            ClientFatal: the client cannot go on.
        """
        first = self._consumer.poll(timeout_s)
        epoch = self._epoch
        messages: list[Any] = [] if first is None else [first, *self._consumer.consume(BATCH, 0)]
        if self._epoch != epoch:
            del messages[
                0
            ]  # partitions changed hands inside `consume`; librdkafka drops stale records, but this was out
        found: list[Any] = []
        for message in messages:
            error = message.error()
            place = (message.topic(), message.partition())
            if error is None:
                found.append(message)
                if self.at_end:
                    self.at_end.discard(place)
            elif error.code() == KafkaError._PARTITION_EOF:
                self.ends[place] = message.offset()
                self.at_end.add(place)
            elif error.fatal():
                raise ClientFatal(f"kafka: {error.str()}")
            elif error.code() in (
                KafkaError.TOPIC_AUTHORIZATION_FAILED,
                KafkaError.GROUP_AUTHORIZATION_FAILED,
            ):
                raise StartError(f"kafka: {error.str()}")
        if self.quality is not None:
            self.quality.poll()
        return found

    def hold_back(self) -> None:
        """Fetch exactly what the owner wants to read now."""
        self._pause({(topic, number) for number in self.assigned for topic in self._owner.ahead(number)})

    def _pause(self, places: set[tuple[str, int]]) -> None:
        """From now on exactly these are not fetched."""
        if places == self._paused:
            return
        if stopped := places - self._paused:
            self._consumer.pause([TopicPartition(*place) for place in stopped])
        if resumed := self._paused - places:
            with suppress(KafkaException):  # it may have left
                self._consumer.resume([TopicPartition(*place) for place in resumed])
        self._paused = places

    def ended(self, number: int, topic: str) -> bool:
        """Whether a partition was read to its end."""
        return (topic, number) in self.at_end

    def really_ended(self, number: int, topic: str) -> bool:
        """Whether a partition that was read to its end still ends there: the broker is asked."""
        place = (topic, number)
        if place not in self.at_end or time.monotonic() < self._ask_again_s:
            return False
        try:
            _, high = self._consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=2.0)
        except KafkaException:
            self._ask_again_s = time.monotonic() + AWAY_S
            return False
        return high is not None and high <= self.ends[place]

    # -- partitions ----------------------------------------------------------------------------------------------

    def _on_assign(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget()
        numbers = sorted({tp.partition for tp in partitions})
        if len(partitions) != len(numbers) * len(self._topics):
            raise ClientFatal(
                f"group {self.group}: got other partitions of results than of labels; expected every member to run "
                "streaminfer score with the same topics"
            )
        if numbers:
            self._begin(numbers)
        else:
            self._consumer.assign([])
        names = [f"{topic}/{number}" for topic in self._topics for number in numbers]
        log.info("assigned", partitions=names, owned=len(names))

    def _begin(self, numbers: list[int]) -> None:
        """Read these partitions from where the owner wants."""
        places = [TopicPartition(topic, number) for number in numbers for topic in self._topics]
        while True:
            try:
                self.assigned = self._places(places)
                break
            except KafkaException as error:
                log.warning("committed offsets are not known yet", error=error.args[0].str())
                if self._owner.stopping():
                    return
                time.sleep(AGAIN_S)
        starts = self._owner.on_own(self.assigned)
        self._consumer.assign(
            [
                TopicPartition(topic, number, starts[number][topic])
                for number in numbers
                for topic in self._topics
            ]
        )
        self.hold_back()

    def _places(self, places: list[TopicPartition]) -> dict[int, dict[str, Place]]:
        """What is committed of these partitions, and what is there, by number and topic.

        Raises:
            KafkaException: no broker says.
        """
        found: dict[int, dict[str, Place]] = {}
        for tp in self._consumer.committed(places, timeout=LOOKUP_S):
            if tp.error is not None:
                raise KafkaException(tp.error)
            low, high = range_of(self._consumer, TopicPartition(tp.topic, tp.partition), LOOKUP_S)
            inside = low <= tp.offset <= high
            if tp.offset >= 0 and not inside:
                log.warning(
                    "the position is no longer on the broker: reading goes on from the earliest",
                    partition=f"{tp.topic}/{tp.partition}",
                    position=tp.offset,
                    earliest=low,
                    end=high,
                )
            place = Place(low, high, tp.offset if inside else None, opened(tp.metadata) if inside else "")
            found.setdefault(tp.partition, {})[tp.topic] = place
        return found

    def _on_revoke(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self._owner.on_leave()
        self._forget()
        self._consumer.unassign()

    def _on_lost(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        log.warning("lost", partitions=[f"{topic}/{n}" for topic in self._topics for n in self.assigned])
        self._owner.on_lost()
        self._forget()
        self._consumer.unassign()

    def _forget(self) -> None:
        self._epoch += 1
        self.ends.clear()
        self.at_end.clear()
        self.assigned = {}
        if self._paused:
            with suppress(KafkaException):
                self._consumer.resume([TopicPartition(*place) for place in self._paused])
        self._paused = set()

    # -- publishing ----------------------------------------------------------------------------------------------

    def publish(self, publications: Sequence[Publication]) -> dict[int, str] | None:
        """Publish records and commit positions, all together.

        Returns:
            Partition -> place of its record. None: it failed; nothing is published or committed, and every partition
            has to begin anew where it is committed.

        Raises:
            ClientFatal: it failed too often in a row.
        """
        try:
            if self.quality is not None:
                places = self.quality.publish(publications, self._consumer.consumer_group_metadata())
                if self._embedded:  # that broker forgets positions of transactions
                    self._commit(publications, places)
            else:
                self._commit(publications, places := {})
        except (TransactionFailed, KafkaException) as failure:
            self._failing_s = self._failing_s if self._failures else time.monotonic()
            self._failures += 1
            log.warning("quality records are not published: the partitions begin anew", error=str(failure))
            if self._failures >= FAILURES_MAX and time.monotonic() - self._failing_s > self._stall_s:
                raise ClientFatal(f"{self._failures} commits in a row failed: {failure}") from None
            if self.quality is not None and not self._owner.stopping():
                self.quality.abort()
            return None
        self._failures = 0
        return places

    def begin_anew(self) -> None:
        """Go back to what is committed. Not to be called while partitions leave."""
        numbers = sorted(self.assigned)
        self._forget()
        if numbers:
            self._begin(numbers)

    def _commit(self, publications: Sequence[Publication], places: Mapping[int, str]) -> None:
        """Commit positions alone.

        Raises:
            KafkaException: one is refused.
        """
        commits = commits_of(publications, places).items()
        offsets = [
            TopicPartition(place.topic, place.number, position, metadata=sealed(note))
            for place, (position, note) in commits
        ]
        if offsets:
            for tp in self._consumer.commit(offsets=offsets, asynchronous=False) or []:
                if tp.error is not None:
                    raise KafkaException(tp.error)

    def close(self) -> None:
        """Leave the group. The owner is told first, as at every revoke."""
        self._consumer.close()
        if self.quality is not None:
            self.quality.close()


def score_group(settings: Settings) -> str:
    """The consumer group of ``streaminfer score``."""
    return f"{settings.kafka['group.id']}.score"


def _properties(settings: Settings, group: str, embedded: bool) -> dict[str, Any]:
    properties = consumer_properties(settings, embedded)
    for name in MEMBERSHIP:  # those of the worker's own group
        if name not in ("session.timeout.ms", "heartbeat.interval.ms"):
            properties.pop(name, None)
    return {
        **properties,
        "group.id": group,
        "partition.assignment.strategy": "range",
        "auto.offset.reset": "earliest",
        "enable.partition.eof": True,
        "statistics.interval.ms": 0,
    }


def find_topics(settings: Settings, results: Sequence[str], labels: str, metrics: str | None) -> Topics:
    """The topics as the broker describes them.

    Raises:
        ConfigError: a client property is wrong.
        StartError: no broker answers, a topic or a right is missing, or results and labels have not equally many
            partitions.
    """
    check_properties(settings.kafka)
    with _naming({labels: "labels.topic", **dict.fromkeys(results, "output.topic")}):
        found, embedded = look_up(settings, [*results, labels], written=False)
    for topic in results:
        if found[topic] != found[labels]:
            raise StartError(
                f"labels.topic: topic {labels} has {found[labels]} partitions, expected as many as the results in "
                f"{topic} have ({found[topic]}): a label must be in the partition of its result"
            )
    with _naming({metrics or "": "metrics.topic"}):
        written = look_up(settings, [metrics], written=True)[0] if metrics is not None else {}
    return Topics("", embedded, {**found, **written}, dict.fromkeys(written, DEFAULT_TOPIC_LIMIT))


@contextmanager
def _naming(fields: Mapping[str, str]) -> Iterator[None]:
    """Put the setting that names a topic before a sentence about the topic."""
    try:
        yield
    except StartError as error:
        field = next((field for topic, field in fields.items() if f"topic {topic} " in f"{error} "), None)
        raise StartError(f"{field}: {error}" if field else str(error)) from None
