"""Where records come from: one consumer, read in columns, owned by one thread.

:meth:`KafkaSource.take` also serves rebalances and the answers to commits. The records it returns belong to
partitions that are still ours when it returns.

This file is long because the consumer's calls and the callbacks inside them share one client and one thread. What can
stand alone has a file of its own: assignment, commits, starts, ends and health.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from worker.batch import Columns, Partition, Span
from worker.errors import ClientFatal
from worker.kafka.assignment import Assignment, Listener, partitions_of
from worker.kafka.columns import Gatherer
from worker.kafka.commits import Commits
from worker.kafka.ends import Ends, Reach
from worker.kafka.headers import header_column
from worker.kafka.health import ClientHealth
from worker.kafka.properties import admin_properties, build, consumer_properties
from worker.kafka.starts import Starts
from worker.kafka.watch import is_same_topic, made_anew
from worker.sizes import HELD_RECORD_BYTES, largest_record_bytes, wire_headers_bytes

if TYPE_CHECKING:
    from worker.settings import Settings

RETRY_S = 1.0
"""Between two attempts to find where a partition whose position is gone can be read."""

log = logging.getLogger(__name__)


def open_source(
    settings: Settings,
    embedded: bool = False,
    topic_ids: Mapping[str, str] | None = None,
    on_out_of_range: Callable[[], None] = lambda: None,
) -> KafkaSource:
    """The consumer of the worker's input topics, not subscribed yet.

    Args:
        embedded: the broker is librdkafka's own (see :mod:`worker.kafka.broker`).
        topic_ids: input topic -> its id at start, where the broker told it.
        on_out_of_range: called when a position was no longer on the broker, for the counter of such returns.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """
    begin: dict[str, str] = {}
    for pipeline in settings.pipelines.values():
        for topic in pipeline.input.topics:
            begin.setdefault(topic, pipeline.input.start)
    return KafkaSource(
        consumer_properties(settings, embedded),
        admin_properties(settings),
        begin,
        topic_ids or {},
        on_out_of_range,
    )


class KafkaSource:
    """The consumer side of the worker.

    Args:
        properties: of the consumer. admin_properties: of clients that ask the broker.
        begin: input topic -> where a group that has committed nothing of it begins, ``earliest`` or ``latest``.
        topic_ids: input topic -> its id at start, where the broker has told it.
        on_out_of_range: called when a position was no longer on the broker.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        admin_properties: Mapping[str, Any],
        begin: Mapping[str, str],
        topic_ids: Mapping[str, str],
        on_out_of_range: Callable[[], None] = lambda: None,
    ) -> None:
        self.out_of_range: Counter[Partition] = Counter()
        """Times a position was no longer on the broker and reading went on from the earliest record."""
        self.health = ClientHealth()
        self.on_member: Callable[[str], object] | None = None
        """Called at every assignment, before records are read, with the id that the group gave to this process."""
        self._on_out_of_range = on_out_of_range
        self._topics = list(begin)
        self._topic_ids = topic_ids
        self._admin_properties = admin_properties
        self._listener: Listener | None = None
        self._unplaced: dict[Partition, float] = {}
        """Partitions whose position is gone while the broker has not told the first one -> when to ask again."""
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
        self._starts = Starts(self._consumer, self._commits, begin, admin_properties)
        self._ends = Ends(self._consumer, admin_properties)

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
    def commit_failures(self) -> int:
        """Positions whose commit failed."""
        return self._commits.failures

    # -- reading -----------------------------------------------------------------------------------------

    def subscribe(self, listener: Listener) -> None:
        """Join the group; ``listener`` hears of the partitions inside later calls of :meth:`take`."""
        self._listener = listener
        self._consumer.subscribe(
            self._topics,
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
        first = self._consumer.poll(timeout_s)
        self.health.raise_failure()
        if self._unplaced:
            self._place_again()
        if first is None:
            return Columns(), []
        messages = [first]
        largest = max(self._peak_bytes, _record_bytes(first)) + HELD_RECORD_BYTES
        more = min(most, wanted_bytes // largest) - 1
        if more > 0:
            # consume(n, 0) drains; with a timeout it would wait for all n of them
            self._assignment.moved.clear()
            messages += self._consumer.consume(more, 0)
            self.health.raise_failure()
            if self._assignment.moved:
                messages = self._still_ours(messages)
        if any(map(Message.error, messages)):
            return self._columns_beside_events(messages)
        return self._columns(messages)

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
                if self._reset(place):
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
                self._went_back(span.partition, first)
            positions[span.partition] = span.next_offset
        return columns, spans

    def _still_ours(self, messages: list[Any]) -> list[Any]:
        """Drop what a rebalance between poll and consume took away or rewound.

        librdkafka itself drops older records of such a partition; only the one polled before is in our hands.
        """
        owned, moved = self._assignment.positions, self._assignment.moved
        places = [Partition(message.topic(), message.partition()) for message in messages]
        return [
            message
            for row, (message, place) in enumerate(zip(messages, places, strict=True))
            if message.error() is not None or (place in owned and not (row == 0 and place in moved))
        ]

    # -- positions ---------------------------------------------------------------------------------------

    def commit(
        self,
        positions: dict[Partition, int],
        wait: bool = False,
        metadata: dict[Partition, str] | None = None,
    ) -> dict[Partition, int]:
        """Commit next offsets (last done + 1), at once or in the background.

        A failure is logged and counted, never raised: the next commit of the partition makes up for it, and in a
        rebalance the new owner starts from the last one that worked.

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
            Partition(tp.topic, tp.partition): (tp.offset if tp.offset >= 0 else None, tp.metadata or "")
            for tp in found
        }

    def seek(self, positions: dict[Partition, int]) -> None:
        """Go on from these offsets; what was fetched before is thrown away."""
        for place, offset in positions.items():
            if place in self._assignment.positions:
                self._assignment.jump(place, offset)

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        """Where reading of these partitions started, with the metadata committed there, where that is known."""
        return self._starts.of(place for place in partitions if place in self._assignment.positions)

    def lag(self) -> dict[Partition, Reach]:
        """How far each owned partition was read and how far it goes; nothing once the source is closed.

        Never waits: an end that is too old is asked for in the background, and told by a later call.
        """
        if self._closed:
            return {}
        connected = self.health.brokers_up > 0
        return self._ends.look(self._assignment, self._starts.start, connected)

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
        closing = threading.Thread(target=self._consumer.close, name="consumer-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive():
            log.warning("the consumer did not leave the group within %.1f s", timeout_s)

    # -- callbacks: nothing may be raised into librdkafka --------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        places = [Partition(tp.topic, tp.partition) for tp in partitions]
        self.health.joined()
        if self.on_member is not None:
            self.on_member(str(consumer.memberid() or ""))
        try:
            self._starts.resolve(partitions)
        except KafkaException as error:
            # the offsets stay at "stored": librdkafka asks for them itself, and reports where there is none (_reset)
            log.warning("committed offsets are not known yet: %s", error.args[0].str())
        try:
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
        self._starts.forget(places)
        self._ends.forget(places)
        for place in places:
            self._unplaced.pop(place, None)

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

    # -- positions that are not on the broker --------------------------------------------------------------

    def _reset(self, place: Partition) -> bool:
        """The position is not on the broker: go on at the first record that is there.

        Nothing was committed yet, or retention removed the records, or the log ends before the position: it was cut
        off, or the topic is another one of the same name.

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
            self._check_topic(place.topic)  # first: with a topic, its committed offsets are deleted
        try:
            committed = self._starts.is_committed(place)
            first = self._starts.first(place) if committed else self._starts.resolve_one(place)
        except KafkaException as error:
            log.warning("%s/%d: the first offset is not known yet: %s", *place, error.args[0].str())
            self._unplaced[place] = time.monotonic() + RETRY_S
            return False
        if committed:
            self._count_out_of_range(place)
        self._assignment.jump(place, first)
        if first < position and returned:
            self._begin_anew(place, first)
            return True
        return False

    def _count_out_of_range(self, place: Partition) -> None:
        if not self.out_of_range[place]:
            log.warning(
                "%s/%d: the position is no longer on the broker, reading goes on from the earliest", *place
            )
        self.out_of_range[place] += 1
        self._on_out_of_range()

    def _went_back(self, place: Partition, first: int) -> None:
        """The client itself goes on at records before those that were returned: it saw that the log is another one."""
        self._check_topic(place.topic)
        self._count_out_of_range(place)
        self._begin_anew(place, first)

    def _check_topic(self, topic: str) -> None:
        if not is_same_topic(self._admin_properties, topic, self._topic_ids.get(topic)):
            raise made_anew("input.topics", topic)

    def _begin_anew(self, place: Partition, first: int) -> None:
        """The log ends before records that were returned: they do not exist any more, and none of them counts."""
        log.warning("%s/%d: its log ends before the position, reading goes on at offset %d", *place, first)
        self._tell(lambda listener: listener.on_lost([place]))
        self._starts.set(place, max(first, 0))
        self._ends.forget([place])
        self._tell(lambda listener: listener.on_assign([place]))
        self.health.raise_failure()

    def _place_again(self) -> None:
        """Ask again for the first offsets that the broker did not tell."""
        now = time.monotonic()
        for place in [place for place, due_s in self._unplaced.items() if due_s <= now]:
            del self._unplaced[place]
            self._reset(place)


def _record_bytes(message: Any) -> int:
    """Key, value and headers of one record; the text of an event."""
    if message.error() is not None:
        return len(message)
    [headers] = header_column([message])
    return len(message) + len(message.key() or b"") + wire_headers_bytes(headers)
