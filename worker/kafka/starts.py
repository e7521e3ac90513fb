"""Where reading of a partition starts: its last commit, or what ``input.start`` says for a group without one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from worker.batch import Partition
from worker.kafka.commits import LOOKUP_TIMEOUT_S, Commits
from worker.kafka.notes import opened
from worker.kafka.properties import build
from worker.topics import ByTopic

log = structlog.get_logger(module=__name__)


class Starts:
    """Finds the starts of owned partitions and remembers them.

    Args:
        consumer: asked for offsets by position and by time.
        commits: asked for the group's committed offsets.
        begin: topic -> ``earliest`` or ``latest``, for a group that has committed nothing of the topic.
        admin_properties: of a client that asks for a topic's partitions.
        existing: topics that were there at start.
    """

    def __init__(
        self,
        consumer: Consumer,
        commits: Commits,
        begin: Mapping[str, str],
        admin_properties: Mapping[str, Any],
        existing: Collection[str] = (),
    ) -> None:
        self._consumer = consumer
        self._commits = commits
        self._begin = ByTopic(begin)
        self._existing = existing
        self._admin_properties = dict(admin_properties)
        self._found: dict[Partition, tuple[int, str]] = {}

    def of(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        """Start and committed metadata of these owned partitions.

        Partitions whose start is not known are asked for again; one that stays unknown is left out.
        """
        wanted = list(partitions)
        unknown = [place for place in wanted if place not in self._found]
        if unknown:
            try:
                for tp in self._commits.committed(TopicPartition(*place) for place in unknown):
                    if tp.offset >= 0:
                        self.set(Partition(tp.topic, tp.partition), tp.offset, opened(tp.metadata))
            except KafkaException as error:
                log.warning("committed offsets are not known yet", error=error.args[0].str())
        return {place: self._found[place] for place in wanted if place in self._found}

    def start(self, place: Partition) -> int | None:
        """Where reading of the partition started, where that is known already."""
        found = self._found.get(place)
        return found[0] if found else None

    def note(self, place: Partition) -> str:
        """What was committed beside the start of the partition, where that is known already."""
        return self._found.get(place, (0, ""))[1]

    def set(self, place: Partition, offset: int, metadata: str = "") -> None:
        """Reading of the partition starts here."""
        self._found[place] = (offset, metadata)

    def forget(self, places: Collection[Partition]) -> None:
        """These partitions are not owned any more."""
        for place in places:
            self._found.pop(place, None)

    def resolve(self, partitions: list[TopicPartition]) -> None:
        """Set the ``offset`` of each partition to its start.

        Raises:
            KafkaException: the broker did not answer in time.
        """
        stored = self._commits.committed(partitions)
        for tp, found in zip(partitions, stored, strict=True):
            tp.offset = found.offset if found.offset >= 0 else OFFSET_BEGINNING
        new = [tp for tp in partitions if tp.offset == OFFSET_BEGINNING]
        self._start_at_beginning(new)
        for topic in {tp.topic for tp in new if self._begins_at_end(tp.topic)}:
            self._start_at_end(topic, [tp for tp in new if tp.topic == topic])
        for tp, found in zip(partitions, stored, strict=True):
            if tp.offset >= 0:
                self.set(Partition(tp.topic, tp.partition), tp.offset, opened(found.metadata))

    def _begins_at_end(self, topic: str) -> bool:
        """Of a topic that a pattern matches, and that was made after this worker had started, every record is new."""
        newcomer = self._begin.name(topic) != topic and topic not in self._existing
        return self._begin.get(topic) == "latest" and not newcomer

    def resolve_one(self, place: Partition) -> int:
        """The start of one partition; negative: the broker decides.

        Raises:
            KafkaException: the broker did not answer in time.
        """
        where = TopicPartition(*place)
        self.resolve([where])
        return where.offset

    def first(self, place: Partition) -> int:
        """The first offset that the broker has of the partition, or the end of an empty one.

        Raises:
            KafkaException: the broker did not answer in time.
        """
        where = TopicPartition(*place)
        self._start_at_beginning([where])
        return max(where.offset, 0)

    def is_committed(self, place: Partition) -> bool:
        """Whether the group has a committed offset of the partition.

        Raises:
            KafkaException: the broker did not answer in time.
        """
        return self._commits.committed([TopicPartition(*place)])[0].offset >= 0

    def _start_at_beginning(self, partitions: list[TopicPartition]) -> None:
        """The first offset there is, as a number: the worker commits a position before it reads anything."""
        if not partitions:
            return
        asked = [TopicPartition(tp.topic, tp.partition, OFFSET_BEGINNING) for tp in partitions]
        found = self._consumer.offsets_for_times(asked, timeout=LOOKUP_TIMEOUT_S)
        for tp, first in zip(partitions, found, strict=True):
            tp.offset = first.offset if first.offset >= 0 else OFFSET_BEGINNING

    def _start_at_end(self, topic: str, partitions: list[TopicPartition]) -> None:
        """A new group starts at the end of the topic, and commits that at once for all of its partitions.

        Without that commit a rebalance before the first result would skip the records that arrived meanwhile. If
        the group has committed other partitions of the topic, one without a commit was added later: it is read
        from its beginning.
        """
        # All topics are asked for, because asking for one by name can create it. The consumer itself must not be
        # asked: inside a rebalance callback, list_topics of the Python client drops the state of the poll around it,
        # and the next callback of that poll ends the process.
        looking = build(AdminClient, self._admin_properties)
        metadata = looking.list_topics(timeout=LOOKUP_TIMEOUT_S)
        everything = [TopicPartition(topic, number) for number in metadata.topics[topic].partitions]
        committed = {tp.partition: tp.offset for tp in self._commits.committed(everything) if tp.offset >= 0}
        if committed:
            for tp in partitions:  # another member may have committed since resolve() asked
                tp.offset = committed.get(tp.partition, tp.offset)
            return
        asked = [TopicPartition(topic, tp.partition, OFFSET_END) for tp in everything]
        found = self._consumer.offsets_for_times(asked, timeout=LOOKUP_TIMEOUT_S)
        ends = {tp.partition: tp.offset for tp in found}
        for tp in partitions:
            tp.offset = ends[tp.partition]
        positions = {Partition(topic, number): end for number, end in ends.items()}
        self._commits.commit(positions, wait=True, metadata={})
