"""Stand-ins for all the loop touches: time, Kafka, the pool, a pipeline, the meters. No threads, no I/O.

:class:`FakeKafka` is the broker with its group; every replica has a :class:`FakeSource` and a
:class:`FakeSink` on it. With a ``random.Random`` they behave as unpleasantly as the real thing may; without one
everything happens at the next opportunity. A :class:`Witness` hears of every event.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from worker.batch import (
    Batch,
    Columns,
    Destination,
    Envelope,
    Headers,
    Lane,
    Opening,
    Outcomes,
    Partition,
    Servable,
    Span,
    Trial,
)
from worker.errors import Reject, Rejection, SickModel, TransactionFailed
from worker.loop.pool import Returned
from worker.loop.series import Sample
from worker.sending import PartitionMode, Sending
from worker.sizes import HELD_HEADER_BYTES, HELD_RECORD_BYTES

DEAD_LETTERS = "dead-letters"
RESULTS = "results"


class FakeClock:
    """Nanoseconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)  # cut off, a wait for the rest of a deadline might never end

    def wall_ms(self) -> float:
        return 1_700_000_000_000 + self.ns / 1e6


class Crash(BaseException):
    """The process is killed right here."""


def never(step: str) -> None:
    """The fuse of a replica that is not going to crash."""


@dataclass(slots=True, eq=False)
class Record:
    """One input record."""

    partition: Partition
    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: Headers | None = None
    timestamp_ms: int = 0

    @property
    def held_bytes(self) -> int:
        """What it takes in memory, the objects around it included: a take is bounded by that."""
        headers = sum(HELD_HEADER_BYTES + len(name) + len(text or b"") for name, text in self.headers or ())
        return len(self.value or b"") + len(self.key or b"") + headers + HELD_RECORD_BYTES


@dataclass(slots=True, eq=False)
class Message:
    """One output on its way."""

    topic: str
    partition: int
    source: Partition
    """The input partition it came from."""
    key: bytes | None
    value: bytes | None
    headers: Headers | None
    on_delivery: Callable[..., None] | None
    timestamp_ms: int = 0
    """As the sink was given it; 0 = the time of sending."""

    @property
    def offset(self) -> int:
        """Offset of the record it answers: results begin with it, tombstones have it as their key."""
        if self.topic == DEAD_LETTERS:
            return int(dict(self.headers or ())["__connect.errors.offset"] or b"")
        return int((self.value or self.key or b"").split()[0])


class Witness:
    """Hears of everything that happens on the fake broker. ``who`` is the replica the event belongs to."""

    def assigned(self, who: Any, partitions: list[Partition]) -> None: ...

    def revoking(self, who: Any, partitions: list[Partition]) -> None:
        """The listener is about to be told; the partitions are still the replica's."""

    def left(self, who: Any, partitions: list[Partition]) -> None:
        """The partitions are not the replica's any more, and it was told or is being told."""

    def lost(self, who: Any, partitions: list[Partition]) -> None:
        """The listener is about to be told that the partitions have been gone for a while."""

    def took(self, who: Any, columns: Columns) -> None: ...

    def sought(self, who: Any, positions: dict[Partition, int]) -> None: ...

    def committing(self, who: Any, positions: dict[Partition, int]) -> None:
        """The replica asks; the broker has not answered."""

    def sent(self, who: Any, message: Message) -> None:
        """The producer took the message."""

    def queue_full(self, who: Any, taken: int, offered: int) -> None: ...

    def landed(self, message: Message) -> None:
        """The message is on the broker."""

    def reported(self, who: Any, message: Message, error: str | None) -> None:
        """The replica is about to hear what became of the message."""


class FakeKafka:
    """Input logs, output logs, committed offsets, and one consumer group with its assignment.

    Args:
        inputs, outputs: topic -> number of partitions; an output topic not named has 3.
        eager: every rebalance takes everything from everybody first.
    """

    def __init__(
        self,
        clock: FakeClock,
        inputs: dict[str, int],
        outputs: dict[str, int] | None = None,
        eager: bool = False,
        witness: Witness | None = None,
    ) -> None:
        self.clock = clock
        self.witness = witness or Witness()
        self.logs: dict[Partition, list[Record]] = {
            Partition(topic, number): [] for topic, count in inputs.items() for number in range(count)
        }
        self.committed: dict[Partition, int] = {}
        self.notes: dict[Partition, str] = {}
        """Metadata beside the committed offsets."""
        self.landed: list[Message] = []
        self.members: list[FakeSource] = []
        self.owner: dict[Partition, FakeSource] = {}
        self.target: dict[Partition, FakeSource] = {}
        self.to_give_up: list[FakeSource] = []
        """Eager rebalance: who has yet to hand in everything before anybody gets anything."""
        self.up = True
        """An outage: nothing lands, commits fail."""
        self._outputs = outputs or {}
        self._eager = eager

    def append(self, partition: Partition, value: bytes | None, gap: int = 0, **fields: Any) -> Record:
        """Add a record; ``gap`` offsets before it stay unused (as behind compaction and transactions)."""
        log = self.logs[partition]
        record = Record(partition, (log[-1].offset + 1 if log else 0) + gap, value, **fields)
        log.append(record)
        return record

    def end(self, partition: Partition) -> int:
        log = self.logs[partition]
        return log[-1].offset + 1 if log else 0

    def drained(self) -> bool:
        """Whether everything on the input topics is committed."""
        return all(self.committed.get(p, 0) >= self.end(p) for p in self.logs)

    def outputs(self, topic: str) -> list[Message]:
        return [message for message in self.landed if message.topic == topic]

    def land(self, message: Message) -> None:
        self.landed.append(message)
        self.witness.landed(message)

    def place(self, topic: str, source: Partition, key: bytes | None, mode: PartitionMode) -> int:
        """The partition an output goes to."""
        hashed = source.number if key is None or mode == "input" else zlib.crc32(key)
        return hashed % self._outputs.get(topic, 3)

    # -- the group ---------------------------------------------------------------------------------------

    def rebalance(self, target: dict[Partition, FakeSource] | None = None) -> None:
        """Aim at a new assignment (round robin unless given); members follow as they poll."""
        members = self.members
        self.target = target or {p: members[i % len(members)] for i, p in enumerate(self.logs) if members}
        if self._eager:
            self.to_give_up = list(dict.fromkeys(self.owner.values()))

    def leave(self, source: FakeSource) -> None:
        """Gone from the group, by itself or by its session's end: its partitions are free."""
        if source in self.members:
            self.members.remove(source)
        self.owner = {p: member for p, member in self.owner.items() if member is not source}
        self.target = {p: member for p, member in self.target.items() if member is not source}
        if source in self.to_give_up:
            self.to_give_up.remove(source)

    def kick(self, source: FakeSource) -> None:
        """Its session ended without it noticing: others may own its partitions before it polls again."""
        self.leave(source)
        source.kicked = True


class FakeSource:
    """One member of the group.

    Args:
        who: handed to the witness with every event.
    """

    def __init__(self, kafka: FakeKafka, who: Any = None, rng: Random | None = None) -> None:
        self.fatal: str | None = None
        self.kicked = False
        self.paused: set[str] = set()
        """Topics that are not fetched."""
        self.refuse_commits = False
        self.fuse: Callable[[str], None] = never
        self.who = who
        self.kafka = kafka
        self._rng = rng
        self._listener: Any = None
        self._next: dict[Partition, int] = {}
        """Index in the log of the next record to return."""
        self._began: dict[Partition, tuple[int, str]] = {}
        """Where reading began, and the note found there."""
        self._commits: deque[dict[Partition, tuple[int, str]]] = deque()
        self._confirmed: dict[Partition, int] = {}
        self.membership = 0
        """Counts how often it joined: the broker refuses what was asked for in an earlier membership."""

    @property
    def topics(self) -> frozenset[str]:
        """The topics of the group."""
        return frozenset(partition.topic for partition in self.kafka.logs)

    def assignment(self) -> list[Partition]:
        """What this member believes it owns."""
        return sorted(self._next)

    def records_read(self, partition: Partition) -> int:
        """How many records of the partition's log lie before the reader."""
        return self._next[partition]

    def position(self, partition: Partition) -> int:
        """Behind the last record that was returned."""
        log, index = self.kafka.logs[partition], self._next[partition]
        return log[index - 1].offset + 1 if index else 0

    def subscribe(self, listener: Any) -> None:
        self._listener = listener
        self.kafka.members.append(self)

    def take(self, timeout_s: float, most: int, wanted_bytes: int) -> tuple[Columns, list[Span]]:
        self.fuse("take")
        self._serve()
        columns, spans = self._fetch(most, wanted_bytes)
        if not spans:
            self.kafka.clock.advance(timeout_s)
        else:
            self.kafka.witness.took(self.who, columns)
        return columns, spans

    def pause(self, topics: Iterable[str]) -> None:
        self.paused.update(topics)

    def resume(self, topics: Iterable[str]) -> None:
        self.paused.difference_update(topics)

    def seek(self, positions: dict[Partition, int]) -> None:
        self.kafka.witness.sought(self.who, positions)
        for partition, offset in positions.items():
            if partition in self._next:
                self._next[partition] = self._index(partition, offset)

    def close(self, timeout_s: float) -> None:
        self.fuse("close")
        self.kafka.witness.left(self.who, self.assignment())
        self._next.clear()
        self.kafka.leave(self)

    def commit(
        self,
        positions: dict[Partition, int],
        wait: bool = False,
        metadata: dict[Partition, str] | None = None,
    ) -> dict[Partition, int]:
        if positions:
            self.kafka.witness.committing(self.who, positions)
            notes = metadata or {}
            self._commits.append({p: (offset, notes.get(p, "")) for p, offset in positions.items()})
        self.fuse("commit")
        if wait:
            self._land_commits()
            self._commits.clear()
        return self.confirmed()

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        return {p: self._began[p] for p in partitions if p in self._began}

    def confirmed(self) -> dict[Partition, int]:
        confirmed, self._confirmed = self._confirmed, {}
        return confirmed

    # -- what a poll serves ------------------------------------------------------------------------------

    def _serve(self) -> None:
        if self._chance():
            self._land_commits()
        if self.kicked:
            self._lose()
        if mine := [p for p in self.assignment() if self._must_go(p)]:
            self.kafka.witness.revoking(self.who, mine)
            try:
                self._listener.on_revoke(mine)
            finally:
                self._forget(mine)
        if self in self.kafka.to_give_up:
            self.kafka.to_give_up.remove(self)
        if not self.kafka.to_give_up:
            self._receive()

    def _must_go(self, partition: Partition) -> bool:
        return self in self.kafka.to_give_up or self.kafka.target.get(partition) is not self

    def _lose(self) -> None:
        """We were out of the group for a while; join again."""
        self.kicked = False
        self.membership += 1
        self.kafka.members.append(self)
        self._commits.clear()  # of a membership that is over
        if lost := self.assignment():
            self.kafka.witness.lost(self.who, lost)
            self.kafka.witness.left(self.who, lost)
            try:
                self._listener.on_lost(lost)
            finally:
                self._next.clear()
                self._began.clear()

    def _forget(self, partitions: list[Partition]) -> None:
        self.kafka.witness.left(self.who, partitions)
        for partition in partitions:
            self._next.pop(partition, None)
            self._began.pop(partition, None)
            self.kafka.owner.pop(partition, None)
        for positions in self._commits:
            for partition in partitions:
                positions.pop(partition, None)

    def _receive(self) -> None:
        kafka = self.kafka
        new = [p for p, member in kafka.target.items() if member is self and p not in kafka.owner]
        if new:
            for partition in new:
                kafka.owner[partition] = self
                start = kafka.committed.get(partition, 0)
                self._next[partition] = self._index(partition, start)
                self._began[partition] = start, kafka.notes.get(partition, "")
            kafka.witness.assigned(self.who, new)
            self._listener.on_assign(new)

    def _land_commits(self) -> None:
        while self._commits:
            positions = self._commits.popleft()
            if self.kafka.up and not self.kicked and not self.refuse_commits:
                for partition, (offset, note) in positions.items():
                    self.kafka.committed[partition] = self._confirmed[partition] = offset
                    self.kafka.notes[partition] = note

    # -- records -----------------------------------------------------------------------------------------

    def _fetch(self, most: int, wanted_bytes: int) -> tuple[Columns, list[Span]]:
        """Any records that are there, per partition consecutive; at least one, however large."""
        columns, spans, held = Columns(), [], 0
        if not self.kafka.up:
            return columns, spans
        for partition in self._in_any_order():
            if partition.topic in self.paused:
                continue
            log, index = self.kafka.logs[partition], self._next[partition]
            start, limit = len(columns), self._some(most - len(columns))
            while index < len(log) and len(columns) - start < limit:
                record = log[index]
                if len(columns) and held + record.held_bytes > wanted_bytes:
                    break
                held += record.held_bytes
                index += 1
                _put(columns, record)
            self._next[partition] = index
            if len(columns) > start:
                spans.append(Span(partition, start, len(columns), columns.offsets[-1] + 1))
        return columns, spans

    def _in_any_order(self) -> list[Partition]:
        partitions = self.assignment()
        if self._rng:
            self._rng.shuffle(partitions)
        return partitions

    def _some(self, most: int) -> int:
        return self._rng.randint(0, most) if self._rng and most > 0 else most

    def _chance(self) -> bool:
        return self._rng is None or self._rng.random() < 0.5

    def _index(self, partition: Partition, offset: int) -> int:
        return bisect_left(self.kafka.logs[partition], offset, key=lambda record: record.offset)


def _put(columns: Columns, record: Record) -> None:
    columns.values.append(record.value)
    columns.keys.append(record.key)
    columns.headers.append(record.headers)
    columns.timestamps_ms.append(record.timestamp_ms)
    columns.offsets.append(record.offset)
    columns.partitions.append(record.partition)


class FakeSink:
    """A producer: a bounded queue, deliveries in order per output partition, reports in :meth:`poll`.

    Args:
        capacity: messages queued or not reported yet.
        by_count: report several rows in one call, as the compiled producer does; else row by row.
    """

    def __init__(
        self,
        kafka: FakeKafka,
        who: Any = None,
        rng: Random | None = None,
        capacity: int = 1_000,
        by_count: bool = False,
    ) -> None:
        self.capacity = capacity
        self.by_count = by_count
        self.refuse = 0
        """So many of the next messages the broker refuses for good."""
        self.stalled = False
        """Nothing is delivered for now."""
        self.dead: set[tuple[str, int]] = set()
        """Topic partitions without a leader: nothing is delivered there."""
        self.limits: dict[str, int] = {}
        """``max.message.bytes`` by topic; 1,048,588 where not given."""
        self.compacted: set[str] = set()
        """Topics that take records with a key only."""
        self.transaction: list[Message] | None = None
        """Delivered and invisible until :class:`FakeTransactions` commits; None = no transactions."""
        self.doomed = False
        """An output of the open transaction was refused: it can only be aborted."""
        self.fuse: Callable[[str], None] = never
        self.who = who
        self._kafka = kafka
        self._rng = rng
        self._queues: dict[tuple[str, int], deque[Message]] = {}
        self._queued = 0
        self._reports: deque[tuple[Message, str | None]] = deque()

    def __len__(self) -> int:
        """Messages handed over whose fate was not reported yet."""
        return self._queued + len(self._reports)

    def send(self, sending: Sending, on_delivery: Callable[..., None] | None) -> int:
        rows = len(sending)
        taken = min(rows, max(0, self.capacity - len(self)))
        for row in range(taken):
            self.fuse("send")
            key = sending.keys[row]
            number = self._kafka.place(sending.topic, sending.source, key, sending.mode)
            headers = sending.headers[row] if sending.headers is not None else None
            message = Message(
                sending.topic,
                number,
                sending.source,
                key,
                sending.values[row],
                headers,
                on_delivery,
                sending.timestamp_ms,
            )
            self._queues.setdefault((sending.topic, number), deque()).append(message)
            self._queued += 1
            self._kafka.witness.sent(self.who, message)
        if taken < rows:
            self._kafka.witness.queue_full(self.who, taken, rows)
        return taken

    def poll(self, timeout_s: float = 0.0) -> None:
        self.fuse("poll")
        self._deliver()
        if timeout_s and not self._reports:
            self._kafka.clock.advance(timeout_s)
            self._deliver()
        due = [self._reports.popleft() for _ in range(self._some(len(self._reports)))]
        for message, error in due:
            if self.transaction is None:
                self._kafka.witness.reported(self.who, message, error)
        if not self.by_count:
            for message, error in due:
                if message.on_delivery is not None:
                    message.on_delivery(error, message)
            return
        # one call for rows of one `send` with one fate, in whatever order they were answered
        for (on_delivery, error), rows in Counter((m.on_delivery, error) for m, error in due).items():
            if on_delivery is not None:
                on_delivery(error, None, rows)

    def max_bytes(self, topic: str) -> int:
        return self.limits.get(topic, 1_048_588)

    def needs_key(self, topic: str) -> bool:
        return topic in self.compacted

    def purge(self) -> None:
        """Give up what is queued; what is on the broker already stays there."""
        for queue in self._queues.values():
            self._reports.extend((message, "purged") for message in queue)
            queue.clear()
        self._queued = 0

    def die(self) -> None:
        """The process is gone: of each partition's queue some beginning still lands, and nobody hears of it."""
        if self._kafka.up and self.transaction is None:
            for queue in self._queues.values():
                for _ in range(self._some(len(queue))):
                    self._kafka.land(queue.popleft())

    def flush(self) -> bool:
        """Deliver everything, if the broker takes it now."""
        rng, self._rng = self._rng, None
        self._deliver()
        self._rng = rng
        self._reports.clear()
        return not self._queued

    def _deliver(self) -> None:
        if self.stalled or not self._kafka.up:
            return
        for place, queue in self._queues.items():
            for _ in range(self._some(0 if place in self.dead else len(queue))):
                self._queued -= 1
                self._deliver_one(queue.popleft())

    def _deliver_one(self, message: Message) -> None:
        error = None
        keyless = message.key is None and message.topic in self.compacted
        if self.refuse or keyless:
            self.refuse -= not keyless
            self.doomed = True
            error = "refused for good"
        elif self.transaction is None:
            self._kafka.land(message)
        else:
            self.transaction.append(message)
        self._reports.append((message, error))

    def _some(self, most: int) -> int:
        return self._rng.randint(0, most) if self._rng and most > 0 else most


class FakeTransactions:
    """The transactional side of a sink, with the offsets of its source in the same transaction.

    Readers see what is committed and nothing else (``read_committed``).

    Args:
        moods: makes the broker not answer now and then when it is asked for committed positions.
    """

    def __init__(
        self,
        kafka: FakeKafka,
        source: FakeSource,
        sink: FakeSink,
        rng: Random | None = None,
        moods: Random | None = None,
    ) -> None:
        self._moods = moods
        self._kafka = kafka
        self._source = source
        self._sink = sink
        self._rng = rng
        self._open = False
        self.hung = False
        sink.transaction = []

    def begin(self) -> None:
        assert not self._open, "a transaction is open already"
        self._open = True

    def group(self) -> Any:
        """The membership of this moment: what fences a zombie's offsets (KIP-447)."""
        return self._source.membership

    def commit(self, positions: dict[Partition, int], metadata: dict[Partition, str], group: Any) -> None:
        assert self._open, "no transaction is open"
        self._sink.fuse("commit transaction")
        if not self._sink.flush() or not self._kafka.up:
            raise TransactionFailed("unknown", "the broker does not answer")
        if self._sink.doomed or self._source.refuse_commits or not self._may_commit(positions, group):
            raise TransactionFailed("aborted", "the broker refuses")
        self._make_visible(positions, metadata)
        if self._rng is not None and self._rng.random() < 0.02:
            raise TransactionFailed("unknown", "the broker's answer was lost")

    def abort(self) -> None:
        self._sink.purge()
        self._sink.flush()
        self._sink.transaction, self._sink.doomed, self._open = [], False, False
        self.hung = False  # a new producer has no call under way

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int | None] | None:
        if self._moods is not None and self._moods.random() < 0.1:
            return None  # the broker does not answer now
        return {partition: self._kafka.committed.get(partition) for partition in partitions}

    def _may_commit(self, positions: dict[Partition, int], group: Any) -> bool:
        member = not self._source.kicked and group == self._source.membership
        return member and all(self._kafka.owner.get(partition) is self._source for partition in positions)

    def _make_visible(self, positions: dict[Partition, int], metadata: dict[Partition, str]) -> None:
        messages, self._sink.transaction, self._open = self._sink.transaction or [], [], False
        for message in messages:
            self._kafka.land(message)
            self._kafka.witness.reported(self._source.who, message, None)
        if positions:
            self._kafka.witness.committing(self._source.who, positions)
        for partition, offset in positions.items():
            self._kafka.committed[partition] = offset
            self._kafka.notes[partition] = metadata.get(partition, "")


class FakePool:
    """Holds batches until the test says they are finished, in whatever order."""

    def __init__(self, clock: FakeClock, capacity: int = 3) -> None:
        self.capacity = capacity
        self.serial = False
        self.finishes = False
        """Whoever waits finds everything finished."""
        self.held: list[Batch] = []
        self.again: list[Batch] = []
        """Of these, the ones that wait for a further try."""
        self.fuse: Callable[[str], None] = never
        self.clock = clock
        self._back: list[Returned] = []

    @property
    def outstanding(self) -> int:
        return len(self.held) + len(self._back)

    def free(self, lanes: Collection[Lane]) -> bool:
        """Each lane has a capacity of its own, so that one that is stuck does not take the others' slots."""
        there = [*self.held, *(back.batch for back in self._back)]
        held = [batch.servable.lane for batch in there]
        return all(held.count(lane) < self.capacity for lane in lanes)

    def submit(self, batch: Batch) -> None:
        self.held.append(batch)

    def waits(self) -> dict[Partition, Any]:
        return {}

    def trying_again(self) -> list[Batch]:
        """What the test says."""
        return self.again

    def finish(self, *batches: Batch, error: BaseException | None = None) -> None:
        """These (all that are held unless given) are done."""
        for batch in batches or tuple(self.held):
            self.held.remove(batch)
            answer(batch, self.clock())
            self._back.append(Returned(batch, error))

    def collect(self, timeout_s: float = 0.0) -> list[Returned]:
        self.fuse("collect")
        if self.finishes:
            self.finish()
        if not self._back:
            self.clock.advance(timeout_s)
        back, self._back = self._back, []
        return back


def answer(batch: Batch, now_ns: int) -> None:
    """What a pipeline would make of the batch: ``<offset> ...`` per record; values that begin with ``bad`` are refused."""
    batch.finished_ns = now_ns
    batch.sick = batch.sick or getattr(batch.servable, "health", {}).get("sick")
    if batch.sick is not None:
        return
    version = batch.servable.model_version
    told = b"ok" if version == "1" else b"ok v%b" % version.encode()
    batch.outcomes = outcomes = Outcomes.empty(len(batch))
    for row, (value, offset) in enumerate(zip(batch.payloads, batch.columns.offsets, strict=True)):
        assert value is not None, "a tombstone never reaches the engine"
        assert not value.startswith(b"get "), "a record without its payload never reaches the engine"
        _, fetched, place = value.partition(b"@")
        partition = batch.columns.partitions[row]
        assert not fetched or place == b"%s/%d/%d" % (partition.topic.encode(), partition.number, offset)
        if value.startswith(b"bad") or refuses(version, value):
            outcomes.rejected[row] = Rejection.of(Reject("bad record"), "decode", batch)
        else:
            # "huge" comes out ten times as long as it went in: the only result that outgrows its topic
            outcomes.bodies[row] = b"%d %s" % (offset, value * 10 if value.startswith(b"huge") else told)
            if isinstance(value, Sample) and not value.startswith(b"huge"):
                outcomes.bodies[row] = b"%d %s" % (offset, b",".join(value.window or ()))


def refuses(version: str, value: bytes) -> bool:
    """Whether a version refuses a record that others answer."""
    return value.startswith(b"fussy") and version.isdigit() and int(version) % 2 == 0


class FakeEnvelope:
    """Bodies that name the record's offset; of the headers, ``traceparent`` travels."""

    completes = False

    def complete(self, batch: Batch, rows: Sequence[int]) -> None: ...

    def error(self, columns: Columns, row: int, rejection: Rejection) -> tuple[bytes, Headers | None]:
        return f"{columns.offsets[row]} {rejection.message}".encode(), self.headers(columns, row)

    def expired(
        self, columns: Columns, row: int, message: str, servable: Servable
    ) -> tuple[bytes, Headers | None]:
        version = b"" if servable.model_version == "1" else b" v%b" % servable.model_version.encode()
        return b"%d expired%b" % (columns.offsets[row], version), self.headers(columns, row)

    def headers(self, columns: Columns, row: int) -> Headers | None:
        return [(name, value) for name, value in columns.headers[row] or () if name == "traceparent"] or None


@dataclass(frozen=True, slots=True, eq=False)
class FakeRoute:
    """A route as the loop knows it."""

    name: str
    topics: frozenset[str]
    when: tuple[str, bytes] | None
    max_bytes: int
    tombstone: str
    destination: Destination
    max_wait_s: float = 0.005
    keep: Any = "all"
    priority: int = 5
    envelope: Envelope = field(default_factory=FakeEnvelope)
    opening: Opening | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FakeServable:
    """A servable as the loop knows it."""

    model_name: str
    batch_records: int
    slab_records: int
    item_nbytes: int
    costly: bool
    cost: Callable[[bytes], int]
    lane: Lane
    model_version: str = "1"
    run_items: int = 8
    health: dict[str, str] = field(default_factory=dict)
    """What is wrong with it, under ``sick``."""

    @property
    def free_bytes(self) -> int:
        return 0 if self.costly else 1 << 62

    def cost_of_length(self, nbytes: int) -> int:
        return 0

    @property
    def label(self) -> str:
        return f"{self.model_name}@{self.model_version}"

    def interrupt(self) -> None: ...


class FakeRollout:
    """A route and the servable that answers it; a test may let another one answer (``stable``)."""

    def __init__(
        self,
        name: str = "digits",
        topics: frozenset[str] = frozenset({"in"}),
        when: tuple[str, bytes] | None = None,
        max_bytes: int = 1_000_000,
        tombstone: str = "pass",
        max_size: int = 8,
        item_nbytes: int = 100,
        costly: bool = False,
        output_topic: str = RESULTS,
        output_partition: PartitionMode = "key",
        errors: bool = False,
        scratch: Callable[[bytes], int] = lambda value: 0,
        slab_records: int | None = None,
        max_wait_s: float = 0.005,
        keep: Any = "all",
        priority: int = 5,
    ) -> None:
        destination = Destination(output_topic, output_partition, errors)
        self.route = FakeRoute(
            name, topics, when, max_bytes, tombstone, destination, max_wait_s, keep, priority
        )
        self.stable = FakeServable(
            name, max_size, slab_records or max_size, item_nbytes, costly, scratch, Lane(name)
        )

        self.trial: Trial | None = None
        self.held = False

    def choose(self) -> FakeServable:
        return self.stable

    def sick(self, servable: Servable, why: str) -> None:
        raise SickModel(f"model {servable.model_name} is sick: {why}")


class FakeMeters:
    """Counts records by outcome, pipelines together; the rest it only takes note of."""

    def __init__(self) -> None:
        self.in_flight: Counter[str] = Counter()
        """Per pipeline: taken and not settled."""
        self.records: Counter[str] = Counter()
        """taken, ok, dead_letter, dropped"""
        self.errors: Counter[str] = Counter()
        """Dead letters by reason."""
        self.rewinds: Counter[str] = Counter()
        self.rebalances = 0
        self.batches = 0

    def taken(self, pipeline: str, records: int, nbytes: int = 0) -> None:
        self.in_flight[pipeline] += records
        self.records["taken"] += records

    def counted(
        self, pipeline: str, ok: int = 0, dead_letter: int = 0, dropped: int = 0, version: str = ""
    ) -> None:
        self.in_flight[pipeline] -= ok + dead_letter + dropped
        self.records["ok"] += ok
        self.records["dead_letter"] += dead_letter
        self.records["dropped"] += dropped

    def skipped(self, pipeline: str, records: int) -> None:
        self.records["skipped"] += records

    def sent(self, nbytes: int) -> None: ...

    def error(self, pipeline: str, reason: str, stage: str, records: int = 1, version: str = "") -> None:
        self.errors[reason] += records

    def batch(self, pipeline: str, batch: Batch) -> None:
        self.batches += 1

    def hold_us(self, pipeline: str, us: Any, records: int = 1) -> None:
        assert us >= 0

    def publish_us(self, pipeline: str, us: Any, records: int = 1) -> None:
        assert us >= 0

    def rebalance(self) -> None:
        self.rebalances += 1

    def rewind(self, cause: str) -> None:
        self.rewinds[cause] += 1

    def loop(self, section: str, seconds: float) -> None:
        assert seconds >= 0


class NullLog:
    """Keeps what was logged: (event, fields)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    warning = info

    def events(self) -> list[str]:
        return [event for event, _ in self.lines]


def columns_of(partition: Partition, offsets: Iterable[int], values: Sequence[bytes | None] = ()) -> Columns:
    """Records of one partition; value ``v<offset>`` where none is given."""
    places = list(offsets)
    columns = Columns()
    for row, offset in enumerate(places):
        value = values[row] if values else b"v%d" % offset
        _put(columns, Record(partition, offset, value))
    return columns
