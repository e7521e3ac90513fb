"""Positions that are not on the broker: retention removed the records, the log was cut off, or the topic is another."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from confluent_kafka import KafkaException

from worker.batch import Partition
from worker.kafka.assignment import Assignment
from worker.kafka.starts import Starts
from worker.kafka.watch import is_same_topic, made_anew

RETRY_S = 1.0
"""Between two attempts to find the first record of a partition."""

log = structlog.get_logger(module=__name__)


class LostPositions:
    """Finds where to read on.

    Args:
        begin_anew: told of a partition whose log ends before records that were returned, and of the offset where
            reading goes on: those records do not exist any more, and none of them counts.
        topic_ids: input topic -> its id at start, where the broker told it.
        admin_properties: of the client that asks for a topic's id.
        on_out_of_range: called for each position that was no longer on the broker.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        assignment: Assignment,
        starts: Starts,
        begin_anew: Callable[[Partition, int], None],
        topic_ids: Mapping[str, str],
        admin_properties: Mapping[str, Any],
        on_out_of_range: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts: Counter[Partition] = Counter()
        """Times that a position of the partition was no longer on the broker."""
        self._assignment = assignment
        self._starts = starts
        self._begin_anew = begin_anew
        self._topic_ids = topic_ids
        self._admin_properties = admin_properties
        self._on_out_of_range = on_out_of_range
        self._clock = clock
        self._due_s: dict[Partition, float] = {}
        """Partitions whose first record the broker has not told -> when to ask again."""

    def reset(self, place: Partition) -> bool:
        """The client stopped at its position: go on at the first record that is there.

        Returns:
            Whether reading of the partition began anew, at records before those that were returned.

        Raises:
            ClientFatal: the topic was deleted and made anew.
        """
        position = self._assignment.positions.get(place)
        if position is None:
            return False
        returned = position != self._starts.start(place)
        if returned:
            self._check_topic(place.topic)  # first, because the committed offsets are deleted with a topic
        try:
            committed = self._starts.is_committed(place)
            first = self._starts.first(place) if committed else self._starts.resolve_one(place)
        except KafkaException as error:
            log.warning(
                "the first offset is not known yet",
                partition=f"{place.topic}/{place.number}",
                error=error.args[0].str(),
            )
            self._due_s[place] = self._clock() + RETRY_S
            return False
        if committed:
            self._count(place)
        self._assignment.jump(place, first)
        if first < position and returned:
            self._begin_anew(place, max(first, 0))
            return True
        return False

    def went_back(self, place: Partition, first: int) -> None:
        """The client itself goes on at a record before those that were returned: it saw that the log is another one.

        Raises:
            ClientFatal: the topic was deleted and made anew.
        """
        self._check_topic(place.topic)
        self._count(place)
        self._begin_anew(place, first)

    def try_again(self) -> None:
        """Ask again for first records that the broker did not tell."""
        if not self._due_s:
            return
        now = self._clock()
        for place in [place for place, due_s in self._due_s.items() if due_s <= now]:
            del self._due_s[place]
            self.reset(place)

    def forget(self, place: Partition) -> None:
        """The partition is not owned any more."""
        self._due_s.pop(place, None)

    def _count(self, place: Partition) -> None:
        if not self.counts[place]:
            log.warning(
                "the position is no longer on the broker: reading goes on from the earliest",
                partition=f"{place.topic}/{place.number}",
            )
        self.counts[place] += 1
        self._on_out_of_range()

    def _check_topic(self, topic: str) -> None:
        if not is_same_topic(self._admin_properties, topic, self._topic_ids.get(topic)):
            raise made_anew("input.topics", topic)
