"""Where records come from: one consumer, read in columns, owned by one thread.

:meth:`KafkaSource.take` also serves rebalances and the answers to commits. The records it returns belong to
partitions that are still ours when it returns.

This file is long because the consumer's calls and the callbacks inside them share one client and one thread. What can
stand alone has a file of its own: assignment, commits, starts, ends and health.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from worker.batch import Columns, Partition, Span
from worker.errors import ClientFatal
from worker.kafka.assignment import Assignment, Listener, partitions_of
from worker.kafka.careful import CarefulReader, columns_of
from worker.kafka.columns import Gatherer, record_bytes
from worker.kafka.commits import Commits
from worker.kafka.ends import Ends, Reach
from worker.kafka.health import ClientHealth
from worker.kafka.lost_positions import LostPositions
from worker.kafka.notes import opened
from worker.kafka.properties import admin_properties, build, consumer_properties
from worker.kafka.starts import Starts
from worker.sizes import HELD_RECORD_BYTES, largest_record_bytes
from worker.topics import subscription

if TYPE_CHECKING:
    from worker.settings import Settings

CAREFUL_S = 0.01
"""Longest wait for the own client while records may come from the careful reader."""

log = structlog.get_logger(module=__name__)


def open_source(
    settings: Settings,
    embedded: bool = False,
    topic_ids: Mapping[str, str] | None = None,
    on_out_of_range: Callable[[], None] = lambda: None,
    is_suspect: Callable[[str], bool] = lambda metadata: False,
    existing: Collection[str] = (),
) -> KafkaSource:
    """The consumer of the worker's input topics, not subscribed yet.

    Args:
        embedded: the broker is librdkafka's own (see :mod:`worker.kafka.broker`).
        topic_ids: input topic -> its id at start, where the broker told it.
        on_out_of_range: called when a position was no longer on the broker, for the counter of such returns.
        is_suspect: whether the metadata committed beside a position tells of a process that died behind it.
        existing: topics that are there at start.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """
    begin: dict[str, str] = {}
    for pipeline in settings.pipelines.values():
        for topic in pipeline.input.topics:
            begin.setdefault(topic, pipeline.input.start)
    properties, limits = consumer_properties(settings, embedded), settings.limits
    return KafkaSource(
        properties,
        admin_properties(settings),
        begin,
        {topic: found for topic, found in (topic_ids or {}).items() if topic in begin},
        CarefulReader(properties, limits.in_flight_bytes + limits.prefetch_bytes),
        on_out_of_range,
        is_suspect,
        existing,
    )


class KafkaSource:
    """The consumer side of the worker.

    Args:
        properties: of the consumer. admin_properties: of clients that ask the broker.
        begin: input topic -> where a group that has committed nothing of it begins, ``earliest`` or ``latest``.
        topic_ids: input topic -> its id at start, where the broker has told it.
        careful: reads the first records of partitions whose last owner died.
        on_out_of_range: called when a position was no longer on the broker.
        is_suspect: whether the metadata committed beside a position tells of a process that died behind it.
        existing: topics that are there at start.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        admin_properties: Mapping[str, Any],
        begin: Mapping[str, str],
        topic_ids: Mapping[str, str],
        careful: CarefulReader,
        on_out_of_range: Callable[[], None] = lambda: None,
        is_suspect: Callable[[str], bool] = lambda metadata: False,
        existing: Collection[str] = (),
    ) -> None:
        self.health = ClientHealth()
        self.on_member: Callable[[str], object] | None = None
        """Called at every assignment, before records are read, with the id that the group gave to this process."""
        self._is_suspect = is_suspect
        self._careful = careful
        self._topics = list(begin)
        self._listener: Listener | None = None
        self._peak_bytes = 1
        """Decaying size of the largest records seen, keys and headers included: bounds a take in bytes."""
        self._closed = False
        self._commits = Commits()
        callbacks = {
            "error_cb": self.health.on_error,
            "on_commit": self._commits.on_commit,
            "stats_cb": self._on_statistics,
        }
        self._consumer = build(Consumer, {**properties, **callbacks})
        self._commits.attach(self._consumer)
        self._assignment = Assignment(self._consumer, properties)
        self._gatherer = Gatherer(self._topics)
        self._starts = Starts(self._consumer, self._commits, begin, admin_properties, existing)
        self._ends = Ends(self._consumer, admin_properties)
        self._lost = LostPositions(
            self._assignment, self._starts, self._begin_anew, topic_ids, admin_properties, on_out_of_range
        )

    @property
    def fatal(self) -> str | None:
        """Why the client can never work again, once that is so."""
        return self.health.fatal

    @property
    def brokers_up(self) -> int:
        """Brokers that the client is connected to, as of the last statistics."""
        return self.health.brokers_up

    @property
    def errors(self) -> Counter[str]:
        """Errors of the client so far, by librdkafka's name of the code."""
        return self.health.errors

    @property
    def out_of_range(self) -> Counter[Partition]:
        """Times a position was no longer on the broker and reading went on from the earliest record."""
        return self._lost.counts

    @property
    def commit_failures(self) -> int:
        """Positions whose commit failed."""
        return self._commits.failures

    # -- reading -----------------------------------------------------------------------------------------

    def subscribe(self, listener: Listener) -> None:
        """Join the group; ``listener`` hears of the partitions inside later calls of :meth:`take`."""
        self._listener = listener
        self._consumer.subscribe(
            [*map(subscription, self._topics)],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def take(self, timeout_s: float, most: int, wanted_bytes: int) -> tuple[Columns, list[Span]]:
        """Wait up to ``timeout_s`` for a record, then return it with what else is there already.

        Args:
            timeout_s: longest wait; whole milliseconds.
            most: most records to return (>= 1).
            wanted_bytes: about how many bytes to return at most, values and the objects around each record together;
                one record always may come.

        Returns:
            Columns in which each partition's records are consecutive and in order, and one span per partition
            (epoch 0).

        Raises:
            StartError: the broker refuses us and we were never in the group.
            ClientFatal: the client can never work again.
            Exception: whatever the listener raised.
        """
        if not self._careful:
            return self._fetch(timeout_s, most, wanted_bytes)
        columns, spans = self._fetch(min(timeout_s, CAREFUL_S), max(1, most // 2), wanted_bytes)
        self._add_careful(columns, spans, most - len(columns), wanted_bytes)
        return columns, spans

    def _fetch(self, timeout_s: float, most: int, wanted_bytes: int) -> tuple[Columns, list[Span]]:
        """What the worker's own client has."""
        first = self._consumer.poll(timeout_s)
        self.health.raise_failure()
        self._lost.try_again()
        if first is None:
            return Columns(), []
        messages = [first]
        largest = max(self._peak_bytes, record_bytes(first)) + HELD_RECORD_BYTES
        more = min(most, wanted_bytes // largest) - 1
        if more > 0:
            # consume(n, 0) drains; with a timeout it would wait for all n of them
            self._assignment.moved.clear()
            messages += self._consumer.consume(more, 0)
            self.health.raise_failure()
            if self._assignment.moved:
                messages = self._assignment.still_ours(messages)
        if any(map(Message.error, messages)):
            return self._columns_beside_events(messages)
        return self._columns(messages)

    def _add_careful(self, columns: Columns, spans: list[Span], most: int, wanted_bytes: int) -> None:
        """Add to a take what the careful reader has; the own client goes on where that one ends."""
        taken = self._careful.take(most, wanted_bytes, self._assignment.paused)
        if taken.place is None:
            return
        if taken.rows:
            theirs, [span] = columns_of(self._gatherer.intern(taken.place), taken.rows)
            span.start, span.stop = len(columns), len(columns) + len(theirs)
            columns.extend(theirs)
            spans.append(span)
            self._assignment.positions[taken.place] = span.next_offset
        if taken.over:
            self._assignment.release(taken.place)

    def _columns_beside_events(self, messages: list[Any]) -> tuple[Columns, list[Span]]:
        """Some messages are events and no records: count the records first, then act on the events."""
        events = [message for message in messages if message.error() is not None]
        records = [message for message in messages if message.error() is None]
        taken = self._columns(records)
        began_anew = set()
        for event in events:
            error = event.error()
            if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                place = Partition(event.topic(), event.partition())
                if self._lost.reset(place):
                    began_anew.add(place)
            elif error.code() != KafkaError._PARTITION_EOF:
                self.health.on_error(error)
        self.health.raise_failure()
        if began_anew.intersection(taken[0].partitions):
            return self._gatherer.gather([m for m in records if (m.topic(), m.partition()) not in began_anew])
        return taken

    def _columns(self, messages: list[Any]) -> tuple[Columns, list[Span]]:
        columns, spans = self._gatherer.gather(messages)
        if spans:
            self._peak_bytes = max(largest_record_bytes(columns), self._peak_bytes * 7 // 8, 1)
        positions = self._assignment.positions
        for span in spans:
            first = columns.offsets[span.start]
            if first < positions.get(span.partition, 0) or span.next_offset <= first:
                self._lost.went_back(span.partition, first)
            positions[span.partition] = span.next_offset
        return columns, spans

    # -- positions ---------------------------------------------------------------------------------------

    def commit(
        self,
        positions: dict[Partition, int],
        wait: bool = False,
        metadata: dict[Partition, str] | None = None,
    ) -> dict[Partition, int]:
        """Commit next offsets (last done + 1), at once or in the background.

        A failure is logged and counted, never raised: the next commit makes up for it.

        Args:
            positions: partition -> next offset.
            wait: return only when the broker has answered (at most about the session timeout).
            metadata: text to keep with the offset; partitions not named get an empty one.

        Returns:
            Positions the broker has confirmed since the last call, these included when ``wait``.
        """
        return self._commits.commit(positions, wait, metadata or {})

    def confirmed(self) -> dict[Partition, int]:
        """Positions the broker has confirmed since the last call."""
        return self._commits.confirmed()

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int | None, str]]:
        """Next offset and metadata of the last commit of each partition; (None, "") where there is none.

        Raises:
            KafkaException: the broker did not answer in time.
        """
        found = self._commits.committed(partitions_of(partitions))
        return {
            Partition(tp.topic, tp.partition): (tp.offset if tp.offset >= 0 else None, opened(tp.metadata))
            for tp in found
        }

    def seek(self, positions: dict[Partition, int]) -> None:
        """Go on from these offsets; what was fetched before is thrown away."""
        for place, offset in positions.items():
            if place in self._assignment.positions:
                self._assignment.jump(place, offset)
            if place in self._careful:
                self._careful.seek(place, offset)

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        """Where reading of these partitions started, with the metadata committed there, where that is known."""
        return self._starts.of(place for place in partitions if place in self._assignment.positions)

    def lag(self) -> dict[Partition, Reach]:
        """How far each owned partition was read and how far it goes; nothing once the source is closed.

        Never waits: an end that is too old is asked for in the background, and told by a later call.
        """
        if self._closed:
            return {}
        return self._ends.look(self._assignment, self._starts.start, self.health.brokers_up > 0)

    # -- flow and membership -----------------------------------------------------------------------------

    def pause(self, topics: Iterable[str]) -> None:
        """Stop fetching these topics, partitions assigned later included. Throws away what was fetched of them."""
        self._assignment.pause(topics)

    def resume(self, topics: Iterable[str]) -> None:
        """Fetch these topics again."""
        self._assignment.resume(topics)

    def assignment(self) -> list[Partition]:
        """The partitions owned now."""
        return list(self._assignment.positions)

    def group_metadata(self) -> Any:
        """What ``send_offsets_to_transaction`` needs; asked for at each use, because it ages."""
        return self._consumer.consumer_group_metadata()

    def close(self, timeout_s: float) -> None:
        """Leave the group. The listener is not called any more: settle and commit before.

        On a thread of its own, because leaving can hang for ever on a broker that is half dead.
        """
        self._listener, self._closed = None, True
        self._careful.close()
        closing = threading.Thread(target=self._consumer.close, name="consumer-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive():
            log.warning("the consumer did not leave the group in time", after_s=timeout_s)

    # -- callbacks: nothing may be raised into librdkafka --------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        places = [Partition(tp.topic, tp.partition) for tp in partitions]
        self.health.joined()
        if self.on_member is not None:
            self.on_member(str(consumer.memberid() or ""))
        try:
            self._starts.resolve(partitions)
        except KafkaException as error:
            # the offsets stay at "stored": librdkafka asks for them itself, and reports where there is none
            log.warning("committed offsets are not known yet", error=error.args[0].str())
        try:
            for place, tp in zip(places, partitions, strict=True):
                if tp.offset >= 0 and self._is_suspect(self._starts.note(place)):
                    self._careful.add(place, tp.offset)
                    self._assignment.held.add(place)
            self._assignment.add(partitions)
            self._tell(lambda listener: listener.on_assign(places))
        except KafkaException as error:
            self.health.fail(ClientFatal(f"cannot take over partitions: {error.args[0].str()}"))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._leave(partitions, lambda listener, places: listener.on_revoke(places))

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._leave(partitions, lambda listener, places: listener.on_lost(places))

    def _leave(
        self, partitions: list[TopicPartition], tell: Callable[[Listener, list[Partition]], None]
    ) -> None:
        """Tell the listener, then forget: it may still commit a partition that is being revoked."""
        places = [Partition(tp.topic, tp.partition) for tp in partitions]
        self._tell(lambda listener: tell(listener, places))
        self._assignment.remove(partitions)
        self._careful.drop(places)
        self._starts.forget(places)
        self._ends.forget(places)
        for place in places:
            self._lost.forget(place)

    def _tell(self, call: Callable[[Listener], None]) -> None:
        if self._listener is None:
            return
        try:
            call(self._listener)
        except Exception as error:
            self.health.fail(error)

    def _on_statistics(self, text: str) -> None:
        statistics = orjson.loads(text)
        self.health.on_statistics(statistics.get("brokers", {}))
        self._ends.on_statistics(statistics.get("topics", {}), self._assignment.positions)

    def _begin_anew(self, place: Partition, first: int) -> None:
        """The log of a partition ends before records that were returned."""
        log.warning(
            "the log ends before the position: reading goes on earlier",
            partition=f"{place.topic}/{place.number}",
            offset=first,
        )
        self._tell(lambda listener: listener.on_lost([place]))
        self._starts.set(place, first)
        self._ends.forget([place])
        self._tell(lambda listener: listener.on_assign([place]))
        self.health.raise_failure()
