"""How far the owned partitions go: the figure that lag, alerts and autoscaling rest on.

Fetches bring a partition's end along, but a partition that is not fetched, because the worker is behind or has paused
it, shows the end of its last fetch: lag would look smaller than it is, just when it grows. Ends that are older than
``STALE_S`` are therefore asked of the broker, in the background.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from functools import cached_property
from typing import Any, NamedTuple

import structlog
from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without saying so
    AdminClient,
    OffsetSpec,
)

from worker.batch import Partition
from worker.kafka.assignment import Assignment
from worker.kafka.properties import build

STALE_S = 0.9
"""Age from which an end is asked for. Lags are looked at once a second, and each look is to find them asked."""
ANSWER_S = 5.0
"""Longest wait for an answer of the broker, in the background."""

log = structlog.get_logger(module=__name__)


class Reach(NamedTuple):
    """How far an owned partition was read, and how far it goes; -1 = not known yet."""

    position: int
    """Next offset to return."""
    end: int
    """Behind the last record there is: the last stable offset while a transaction is open, else the high watermark."""
    unreadable: int = 0
    """Offsets from ``position`` on that hold no record: aborted ones, and the markers of transactions."""
    start: int | None = None
    """Where reading started."""
    age_s: float = 0.0
    """Seconds since ``end`` was last known to be right."""


class _End:
    """The end of one partition."""

    def __init__(self, now: float) -> None:
        self.offset = -1
        self.known_s = now
        """When ``offset`` was last known to be right; monotonic."""
        self.fetched = -1
        """What the client said last; it changes only with a fetch."""


class Ends:
    """Keeps the ends of the owned partitions up to date; used by one thread, never waits for the broker.

    Args:
        consumer: its fetches bring most of the figures.
        admin_properties: of the client that asks for the others.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        consumer: Consumer,
        admin_properties: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._consumer = consumer
        self._admin_properties = dict(admin_properties)
        self._clock = clock
        self._ends: dict[Partition, _End] = {}
        self._stable: dict[Partition, int] = {}
        """Partitions with an open transaction -> the first offset that it may concern, as last heard."""
        self._asked: dict[TopicPartition, Future[Any]] = {}
        self._asked_s = 0.0

    def forget(self, places: Collection[Partition]) -> None:
        """These partitions are not owned any more."""
        for place in places:
            self._ends.pop(place, None)
            self._stable.pop(place, None)

    def on_statistics(self, topics: Mapping[str, Any], owned: Collection[Partition]) -> None:
        """Take the last stable offsets from librdkafka's statistics: the client offers them nowhere else.

        Args:
            topics: the ``topics`` object of the statistics.
        """
        for place in owned:
            told = topics.get(place.topic, {}).get("partitions", {}).get(str(place.number))
            if told is None:
                continue
            if 0 <= told["ls_offset"] < told["hi_offset"]:
                self._stable[place] = told["ls_offset"]
            else:
                self._stable.pop(place, None)

    def look(
        self, assignment: Assignment, start: Callable[[Partition], int | None], connected: bool
    ) -> dict[Partition, Reach]:
        """How far each owned partition was read and how far it goes, as known now; asks for ends that are too old.

        Args:
            start: where reading of a partition started, where that is known.
            connected: the client has a connection to a broker.
        """
        positions = assignment.positions
        if not positions:
            return {}
        now = self._clock()
        # connected and not paused, the client waits at each end that it has reached for the next record
        waiting = {place for place in positions if connected and place.topic not in assignment.paused}
        self._note_fetches(positions, now, waiting)
        self._take_answers()
        self._ask([place for place in positions if now - self._ends[place].known_s >= STALE_S], now)
        passed = assignment.passed()
        reached = {}
        for place, position in positions.items():
            end = self._ends[place]
            unreadable = passed[place] - position if passed[place] > position >= 0 else 0
            reached[place] = Reach(max(position, -1), end.offset, unreadable, start(place), now - end.known_s)
        return reached

    def _note_fetches(
        self, positions: Mapping[Partition, int], now: float, waiting: Collection[Partition]
    ) -> None:
        """Take the ends that the client has learnt with its fetches."""
        for place, position in positions.items():
            end = self._ends.setdefault(place, _End(now))
            high = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)[1]
            fetched = self._stable.get(place, high)
            if fetched != end.fetched and fetched >= 0:
                end.fetched = end.offset = fetched
                end.known_s = now
            elif place in waiting and position >= end.offset >= 0 and end.offset == fetched:
                end.known_s = now

    def _take_answers(self) -> None:
        if not self._asked or not all(answer.done() for answer in self._asked.values()):
            return
        for tp, answer in self._asked.items():
            end = self._ends.get(Partition(tp.topic, tp.partition))
            try:
                offset = answer.result(timeout=0).offset
            except KafkaException as error:
                log.debug(
                    "the end of a partition is not known",
                    partition=f"{tp.topic}/{tp.partition}",
                    error=error.args[0].str(),
                )
                continue
            if end is not None and end.known_s < self._asked_s:  # else a fetch brought a newer one meanwhile
                end.offset, end.known_s = offset, self._asked_s
        self._asked = {}

    def _ask(self, places: Collection[Partition], now: float) -> None:
        if not places or self._asked or now - self._asked_s < STALE_S:
            return
        self._asked_s = now
        newest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        self._asked = self._client.list_offsets(
            {TopicPartition(*place): newest for place in places},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=ANSWER_S,
        )

    @cached_property
    def _client(self) -> AdminClient:
        """Made when it is needed: a worker that keeps up never asks."""
        return build(AdminClient, self._admin_properties)
