"""Where records come from: one consumer, read in columns, owned by one thread.

Rebalances and commit reports are served inside :meth:`KafkaSource.take`. What it returns belongs to partitions
that are still ours when it returns.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import orjson
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from worker.batch import Columns, Partition, Span
from worker.errors import ClientFatal, StartError
from worker.kafka.properties import admin_properties, build, consumer_properties

if TYPE_CHECKING:
    from worker.settings import Settings

STALE_WAIT_S = 3.0
"""How long a commit that is waited for is repeated while the broker counts the member's epoch further than we do."""
STALE_PAUSE_S = 0.02
BROKERLESS_S = 20.0
"""After this long without any broker to ask the client is given up."""
LOOKUP_TIMEOUT_S = 5.0
"""For each question asked of the broker inside a rebalance; past it librdkafka asks by itself."""
REFUSALS = {
    KafkaError._AUTHENTICATION: "kafka: authentication failed",
    KafkaError._SSL: "kafka: TLS failed",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "kafka.group.id: not authorised for the group",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "input.topics: not authorised to read",
    KafkaError.INVALID_SESSION_TIMEOUT: "kafka.session.timeout.ms: the broker does not allow it",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: "kafka.group.id: its members use another assignment strategy",
}
"""Errors that waiting does not mend: before the first assignment they end the start."""

PASSING = frozenset(
    {
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.STALE_MEMBER_EPOCH,
    }
)
"""Why a commit is refused while partitions change hands: whoever has them next starts from the last that worked."""

# One class stands for records and for events, so every field may be None to a type checker; a record's never is.
_topic: Any = Message.topic
_number: Any = Message.partition
_offset: Any = Message.offset
_headers: Any = Message.headers
_timestamp_ms: Any = itemgetter(1)
log = logging.getLogger(__name__)


class Listener(Protocol):
    """Told of rebalances, on the thread that calls ``take``."""

    def on_assign(self, partitions: list[Partition]) -> None:
        """These are ours from now on; nothing of them has been returned yet."""

    def on_revoke(self, partitions: list[Partition]) -> None:
        """These are ours until this returns: the last moment to commit."""

    def on_lost(self, partitions: list[Partition]) -> None:
        """Someone else may own these already: neither commit nor publish."""


class Reach(NamedTuple):
    """How far an owned partition was read, and how far it goes; -1 = not known yet."""

    position: int
    """Next offset to return."""
    end: int
    """Behind the last record there is: the last stable offset while a transaction is open, else the high watermark."""
    unreadable: int = 0
    """Offsets from ``position`` on that hold no record: aborted ones, and what transactions leave as their marks."""
    start: int | None = None
    """Where reading began."""


class KafkaSource:
    """The consumer side of the worker.

    Args:
        settings: the worker's settings.
        embedded: the broker is librdkafka's own (see :mod:`worker.kafka.broker`).
        on_out_of_range: called when a position was no longer on the broker, for the counter of such returns.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """

    def __init__(
        self, settings: Settings, embedded: bool = False, on_out_of_range: Callable[[], None] = lambda: None
    ) -> None:
        self._on_out_of_range = on_out_of_range
        self._starts: dict[str, str] = {}
        for pipeline in settings.pipelines.values():
            for topic in pipeline.input.topics:
                self._starts.setdefault(topic, pipeline.input.start)
        properties = consumer_properties(settings, embedded)
        self._incremental = _is_incremental(properties)
        properties |= {
            "error_cb": self._on_error,
            "on_commit": self._on_commit,
            "stats_cb": self._on_statistics,
        }
        self._listener: Listener | None = None
        self._assigned: dict[Partition, int] = {}
        """Partitions owned now -> offset behind the last record returned (negative: none yet)."""
        self._found: dict[Partition, tuple[int, str]] = {}
        """Where reading of an owned partition began, and the metadata committed there."""
        self._stable_ends: dict[Partition, int] = {}
        """Where a transaction is open: the first offset it may concern, as last heard."""
        self._gone: set[Partition] = set()
        """Revoked, lost or sought since the poll of the running take: what that poll returned of them is stale."""
        self._interned: dict[tuple[str, int], Partition] = {}
        self._peak_bytes = 1
        """Decaying size of the largest values seen: bounds a take in bytes."""
        self._paused: set[str] = set()
        """Topics that are not fetched."""
        self._joined = False
        self._closed = False
        self._had_brokers_s = time.monotonic()
        self._failure: Exception | None = None
        self._confirmed: dict[Partition, int] = {}
        self._refused: dict[Partition, int] = {}
        """Why the last commit of a partition failed, as a code; none where it did not."""
        self._reported: int | None = None
        """Code of the last client error logged: an outage repeats it many times a second."""
        self.fatal: str | None = None
        """Why the client can never work again, once that is so."""
        self.out_of_range: Counter[Partition] = Counter()
        """Times a position was no longer on the broker and reading went on from the earliest record."""
        self.commit_failures = 0
        self._admin_properties = admin_properties(settings)
        self._consumer = build(Consumer, properties)

    # -- reading -----------------------------------------------------------------------------------------

    def subscribe(self, listener: Listener) -> None:
        """Join the group; ``listener`` hears of the partitions inside later calls of :meth:`take`."""
        self._listener = listener
        self._consumer.subscribe(
            list(self._starts),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def take(self, timeout_s: float, most: int, wanted_bytes: int) -> tuple[Columns, list[Span]]:
        """Wait up to ``timeout_s`` for a record, then return it with what else is there already.

        Args:
            timeout_s: longest wait; whole milliseconds.
            most: most records to return (>= 1).
            wanted_bytes: about how many bytes of values to return at most; one record always may come.

        Returns:
            Columns in which each partition's records are consecutive and in order, and one span per partition
            (epoch 0).

        Raises:
            StartError: the broker refuses us and we were never in the group.
            ClientFatal: the client can never work again.
            Exception: whatever the listener raised.
        """
        first = self._consumer.poll(timeout_s)
        self._raise_failure()
        if first is None:
            return Columns(), []
        messages = [first]
        more = min(most, wanted_bytes // max(self._peak_bytes, len(first))) - 1
        if more > 0:
            # consume(n, 0) drains; with a timeout it would wait for all n of them
            self._gone.clear()
            messages += self._consumer.consume(more, 0)
            self._raise_failure()
            if self._gone:
                messages = self._still_ours(messages)
        if any(map(Message.error, messages)):
            return self._columns_beside_events(messages)
        return self._columns(messages)

    def _columns_beside_events(self, messages: list[Any]) -> tuple[Columns, list[Span]]:
        """Some messages are no records but something that happened: act on it once the records are counted."""
        events = [message for message in messages if message.error() is not None]
        taken = self._columns([message for message in messages if message.error() is None])
        for event in events:
            error = event.error()
            if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                self._reset(Partition(event.topic(), event.partition()))
            elif error.code() != KafkaError._PARTITION_EOF:
                self._on_error(error)
        self._raise_failure()
        return taken

    def _columns(self, messages: list[Any]) -> tuple[Columns, list[Span]]:
        """Messages of any partitions as columns, all fields by C methods over the whole list."""
        if not messages:
            return Columns(), []
        counts = self._group(messages)
        self._peak_bytes = max(max(map(len, messages)), self._peak_bytes * 7 // 8, 1)
        offsets = list(map(_offset, messages))
        spans: list[Span] = []
        start = 0
        for partition, count in counts:
            stop = start + count
            spans.append(Span(partition, start, stop, offsets[stop - 1] + 1))
            self._assigned[partition] = offsets[stop - 1] + 1
            start = stop
        columns = Columns(
            list(map(Message.value, messages)),
            list(map(Message.key, messages)),
            list(map(_headers, messages)),
            list(map(_timestamp_ms, map(Message.timestamp, messages))),
            offsets,
            list(chain.from_iterable(repeat(partition, count) for partition, count in counts)),
        )
        return columns, spans

    def _group(self, messages: list[Any]) -> list[tuple[Partition, int]]:
        """Sort so that each partition's records are together, in their order; how many each has."""
        if len(self._starts) == 1:
            [topic] = self._starts
            numbers = list(map(_number, messages))
            ordered = sorted(numbers)
            if ordered != numbers:
                messages.sort(key=_number)
            return [(self._place(topic, number), count) for number, count in _runs(ordered)]
        messages.sort(key=_number)
        messages.sort(key=_topic)
        pairs = Counter(zip(map(_topic, messages), map(_number, messages), strict=True))
        return [(self._place(*pair), count) for pair, count in pairs.items()]

    def _place(self, topic: str, number: int) -> Partition:
        """One object per partition, however many records."""
        return self._interned.setdefault((topic, number), Partition(topic, number))

    def _still_ours(self, messages: list[Any]) -> list[Any]:
        """Drop what a rebalance between poll and consume took away or rewound.

        librdkafka itself drops older records of such a partition; only the one polled before is in our hands.
        """
        places = [Partition(message.topic(), message.partition()) for message in messages]
        return [
            message
            for row, (message, place) in enumerate(zip(messages, places, strict=True))
            if message.error() is not None
            or (place in self._assigned and not (row == 0 and place in self._gone))
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
        if positions:
            notes = metadata or {}
            offsets = [
                TopicPartition(place.topic, place.number, offset, metadata=notes.get(place, ""))
                for place, offset in positions.items()
            ]
            if wait:
                self._commit_and_wait(offsets)
            else:
                try:
                    self._consumer.commit(offsets=offsets, asynchronous=True)
                except KafkaException as error:
                    self._on_commit(error.args[0], offsets)
        return self.confirmed()

    def _commit_and_wait(self, offsets: list[TopicPartition]) -> None:
        """Commit until the broker has answered for good.

        Under the consumer protocol the broker may have counted the member's epoch on while its word of that is still
        on the way: the commit is refused though the partitions are ours. In a revoke there is no next commit that
        makes up for it, so it is repeated, as Java's ``commitSync`` does; librdkafka leaves a manual one at that.
        """
        until = time.monotonic() + STALE_WAIT_S
        while True:
            try:
                error, answered = None, self._consumer.commit(offsets=offsets, asynchronous=False) or []
            except KafkaException as failure:
                error, answered = failure.args[0], offsets
            stale = {(tp.topic, tp.partition) for tp in answered if _is_stale(error or tp.error)}
            if not stale or time.monotonic() > until:
                self._on_commit(error, answered)
                return
            self._on_commit(None, [tp for tp in answered if (tp.topic, tp.partition) not in stale])
            offsets = [tp for tp in offsets if (tp.topic, tp.partition) in stale]  # with their metadata
            time.sleep(STALE_PAUSE_S)

    def confirmed(self) -> dict[Partition, int]:
        """Positions the broker has confirmed since the last call."""
        confirmed, self._confirmed = self._confirmed, {}
        return confirmed

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int | None, str]]:
        """Next offset and metadata of the last commit of each partition; (None, "") where there is none.

        Raises:
            KafkaException: the broker did not answer in time.
        """
        asked = [TopicPartition(*place) for place in partitions]
        return {
            Partition(tp.topic, tp.partition): (tp.offset if tp.offset >= 0 else None, tp.metadata or "")
            for tp in self._committed(asked)
        }

    def seek(self, positions: dict[Partition, int]) -> None:
        """Go on from these offsets; what was fetched before is thrown away."""
        self._gone.update(positions)
        for place, offset in positions.items():
            if place in self._assigned:
                self._jump(place, offset)

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        """Where reading of these partitions began, with the metadata committed there; those not known are left out."""
        unknown = [place for place in partitions if place in self._assigned and place not in self._found]
        if unknown:
            try:
                for place, (offset, metadata) in self.committed(unknown).items():
                    if offset is not None:
                        self._found[place] = (offset, metadata)
            except KafkaException as error:
                log.warning("committed offsets are not known yet: %s", error.args[0].str())
        return {place: self._found[place] for place in partitions if place in self._found}

    def lag(self) -> dict[Partition, Reach]:
        """How far each owned partition was read, as last heard; nothing once the source is closed."""
        if self._closed or not self._assigned:
            return {}
        # the client's own position goes on over what it has nothing to hand over of
        passed = self._consumer.position([TopicPartition(*place) for place in self._assigned])
        behind = {Partition(tp.topic, tp.partition): tp.offset for tp in passed}
        return {
            place: self._reach(place, position, behind[place]) for place, position in self._assigned.items()
        }

    def _reach(self, place: Partition, position: int, passed: int) -> Reach:
        high = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)[1]
        found = self._found.get(place)
        return Reach(
            max(position, -1),
            max(self._stable_ends.get(place, high), -1),
            passed - position if passed > position >= 0 else 0,
            found[0] if found else None,
        )

    # -- flow and membership -----------------------------------------------------------------------------

    def pause(self, topics: Iterable[str]) -> None:
        """Stop fetching these topics, partitions assigned later included. Throws away what was fetched of them."""
        self._paused.update(topics)
        self._consumer.pause(self._places_of(topics))

    def resume(self, topics: Iterable[str]) -> None:
        """Fetch these topics again."""
        self._paused.difference_update(topics)
        self._consumer.resume(self._places_of(topics))

    def _places_of(self, topics: Iterable[str]) -> list[TopicPartition]:
        return [TopicPartition(*place) for place in self._assigned if place.topic in topics]

    def assignment(self) -> list[Partition]:
        return list(self._assigned)

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
        self._joined = True
        try:
            self._resolve_starts(partitions)
        except KafkaException as error:
            # left at "stored": librdkafka asks again, and says so when there is no commit (see _reset)
            log.warning("committed offsets are not known yet: %s", error.args[0].str())
        try:
            (consumer.incremental_assign if self._incremental else consumer.assign)(partitions)
            self._assigned |= {place: tp.offset for place, tp in zip(places, partitions, strict=True)}
            if paused := [tp for tp in partitions if tp.topic in self._paused]:
                consumer.pause(paused)
            self._tell(lambda listener: listener.on_assign(places))
        except KafkaException as error:
            self._failure = ClientFatal(f"cannot take over partitions: {error.args[0].str()}")

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._leave(partitions, lambda listener, places: listener.on_revoke(places))

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._leave(partitions, lambda listener, places: listener.on_lost(places))

    def _leave(
        self, partitions: list[TopicPartition], tell: Callable[[Listener, list[Partition]], None]
    ) -> None:
        """Tell first, forget then: a revoked partition may still be committed while the listener is told."""
        places = [Partition(tp.topic, tp.partition) for tp in partitions]
        self._tell(lambda listener: tell(listener, places))
        if paused := [tp for tp in partitions if tp.topic in self._paused]:
            # a pause outlives the assignment inside librdkafka: come back, it would stand still for ever
            with suppress(KafkaException):
                self._consumer.resume(paused)
        for place in places:
            self._assigned.pop(place, None)
            self._found.pop(place, None)
            self._stable_ends.pop(place, None)
        self._gone.update(places)

    def _tell(self, call: Callable[[Listener], None]) -> None:
        if self._listener is None:
            return
        try:
            call(self._listener)
        except Exception as error:
            self._failure = error

    def _on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        for tp in offsets:
            wrong = error or tp.error
            place = Partition(tp.topic, tp.partition)
            if wrong is None:
                self._confirmed[place] = tp.offset
                self._refused.pop(place, None)
                continue
            self.commit_failures += 1
            if self._refused.get(place) != wrong.code():  # an outage refuses every one of them
                level = logging.INFO if wrong.code() in PASSING else logging.WARNING
                log.log(
                    level, "commit of %s/%d at %d failed: %s", tp.topic, tp.partition, tp.offset, wrong.str()
                )
            self._refused[place] = wrong.code()

    def _on_statistics(self, text: str) -> None:
        """Where transactions are open, and which brokers there are: the client says neither anywhere else."""
        statistics = orjson.loads(text)
        self._look_for_brokers(statistics.get("brokers", {}))
        topics = statistics.get("topics", {})
        for place in self._assigned:
            told = topics.get(place.topic, {}).get("partitions", {}).get(str(place.number))
            if told is None:
                continue
            if told["ls_offset"] >= 0 and told["ls_offset"] < told["hi_offset"]:
                self._stable_ends[place] = told["ls_offset"]
            else:
                self._stable_ends.pop(place, None)

    def _look_for_brokers(self, brokers: dict[str, dict[str, Any]]) -> None:
        """Give up a client that has no broker left and will not look for one.

        An only broker that leaves in order says with its last words that there is none, and librdkafka (2.16) may
        believe it for good: a re-bootstrap that was stopped on its way counts as under way for ever. Such a client
        stays silent, joins no group and fetches nothing. In an outage it still has those of ``bootstrap.servers``.
        """
        now = time.monotonic()
        if any(broker.get("source") != "logical" for broker in brokers.values()):
            self._had_brokers_s = now
        elif now - self._had_brokers_s > BROKERLESS_S:
            self._failure = ClientFatal(
                f"the Kafka consumer has had no broker to ask for {BROKERLESS_S:.0f} s and does not look for one; "
                "a new process begins with kafka.bootstrap.servers"
            )

    def _on_error(self, error: KafkaError) -> None:
        code = error.code()
        if error.fatal():
            self.fatal = error.str()
            self._failure = ClientFatal(f"the Kafka consumer cannot go on: {error.str()}")
        elif code in REFUSALS and not self._joined:
            self._failure = StartError(f"{REFUSALS[code]}: {error.str()}")
        elif code != self._reported:
            log.warning("kafka: %s", error.str())
        self._reported = code

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    # -- where reading starts ------------------------------------------------------------------------------

    def _resolve_starts(self, partitions: list[TopicPartition]) -> None:
        """Give each partition the offset to start at: its last commit, or what ``input.start`` says."""
        stored = self._committed(partitions)
        for tp, found in zip(partitions, stored, strict=True):
            tp.offset = found.offset if found.offset >= 0 else OFFSET_BEGINNING
        new = [tp for tp in partitions if tp.offset == OFFSET_BEGINNING]
        self._start_at_beginning(new)
        for topic in {tp.topic for tp in new if self._starts.get(tp.topic) == "latest"}:
            self._start_at_end(topic, [tp for tp in new if tp.topic == topic])
        for tp, found in zip(partitions, stored, strict=True):
            if tp.offset >= 0:
                self._found[Partition(tp.topic, tp.partition)] = (tp.offset, found.metadata or "")

    def _start_at_beginning(self, partitions: list[TopicPartition]) -> None:
        """The first offset there is, as a number: a position is committed before anything is read."""
        if not partitions:
            return
        asked = [TopicPartition(tp.topic, tp.partition, OFFSET_BEGINNING) for tp in partitions]
        found = self._consumer.offsets_for_times(asked, timeout=LOOKUP_TIMEOUT_S)
        for tp, first in zip(partitions, found, strict=True):
            tp.offset = first.offset if first.offset >= 0 else OFFSET_BEGINNING

    def _start_at_end(self, topic: str, partitions: list[TopicPartition]) -> None:
        """A new group begins at the end of the topic, and commits that at once for the whole topic.

        Without the commit a rebalance before the first result would skip what arrived meanwhile. A partition
        without one in a group that has others was added later: it is read from its beginning.
        """
        # never by name: that can create it. And never by the consumer itself: inside a callback that call of confluent's
        # client takes the state of the poll around it away, and the next callback of that poll ends the process.
        looking = build(AdminClient, self._admin_properties)
        metadata = looking.list_topics(timeout=LOOKUP_TIMEOUT_S)
        everything = [TopicPartition(topic, number) for number in metadata.topics[topic].partitions]
        committed = {tp.partition: tp.offset for tp in self._committed(everything) if tp.offset >= 0}
        if committed:
            for tp in partitions:  # another member may have been here since we looked
                tp.offset = committed.get(tp.partition, tp.offset)
            return
        asked = [TopicPartition(topic, tp.partition, OFFSET_END) for tp in everything]
        ends = {
            tp.partition: tp.offset
            for tp in self._consumer.offsets_for_times(asked, timeout=LOOKUP_TIMEOUT_S)
        }
        for tp in partitions:
            tp.offset = ends[tp.partition]
        self.commit({Partition(topic, number): end for number, end in ends.items()}, wait=True)

    def _committed(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        asked = [TopicPartition(tp.topic, tp.partition) for tp in partitions]
        found: list[TopicPartition] = self._consumer.committed(asked, timeout=LOOKUP_TIMEOUT_S)
        for tp in found:
            if tp.error is not None:
                raise KafkaException(tp.error)
        return found

    def _reset(self, place: Partition) -> None:
        """The position is not on the broker: never committed, or removed by retention."""
        if place not in self._assigned:
            return
        where = TopicPartition(*place)
        try:
            if self._committed([where])[0].offset < 0:
                self._resolve_starts([where])
                self._jump(place, where.offset)
                return
        except KafkaException as error:
            log.warning("committed offset of %s/%d is not known: %s", *place, error.args[0].str())
        if not self.out_of_range[place]:
            log.warning(
                "%s/%d: the position is no longer on the broker, reading goes on from the earliest", *place
            )
        self.out_of_range[place] += 1
        self._on_out_of_range()
        self._jump(place, OFFSET_BEGINNING)

    def _jump(self, place: Partition, offset: int) -> None:
        target = TopicPartition(place.topic, place.number, offset)
        self._assigned[place] = offset
        try:
            self._consumer.seek(target)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:
                raise ClientFatal(
                    f"cannot seek in {place.topic}/{place.number}: {error.args[0].str()}"
                ) from None
            self._assign_anew(target)  # it is not being fetched: stopped by an error, or not started yet

    def _assign_anew(self, target: TopicPartition) -> None:
        """Begin at the target's offset; the eager protocol lets only the whole assignment be given."""
        if self._incremental:
            self._consumer.incremental_unassign([target])
            self._consumer.incremental_assign([target])
        else:
            self._consumer.assign(
                [TopicPartition(*place, offset) for place, offset in self._assigned.items()]
            )
        if self._paused:
            self.pause(self._paused)


def _runs(ordered: list[int]) -> Iterator[tuple[int, int]]:
    """Each number of a sorted list and how often it is there."""
    start = 0
    while start < len(ordered):
        stop = bisect_right(ordered, ordered[start], start)
        yield ordered[start], stop - start
        start = stop


def _is_stale(error: KafkaError | None) -> bool:
    return error is not None and error.code() == KafkaError.STALE_MEMBER_EPOCH


def _is_incremental(properties: dict[str, Any]) -> bool:
    """Whether partitions come and go one by one, or all are taken away and given anew at each rebalance."""
    if str(properties.get("group.protocol", "classic")).lower() == "consumer":
        return True
    return "cooperative" in str(properties["partition.assignment.strategy"])
