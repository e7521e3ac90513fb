"""The judges: one promise each. They see what the broker sees and what the replica is told, never the loop's own books,
except where the promise is about those."""

from __future__ import annotations

import math
from collections import Counter

from fakes import DEAD_LETTERS, Message, refuses
from sim_world import LARGEST_COST, LARGEST_RECORD, Judge, Replica

from worker.batch import Batch, Columns, Partition
from worker.loop.window import Window
from worker.sizes import HELD_RECORD_BYTES

ONE_RECORD_BYTES = LARGEST_RECORD + HELD_RECORD_BYTES + 200 + LARGEST_COST
_busy = Window.busy
"""The right one, whatever is planted in its place."""
Place = tuple[Partition, int]
"""An input record: partition and offset."""


class NothingLost(Judge):
    """When all is quiet every record has the output it must have. Of a key's records the newest has one, whatever is kept."""

    def __init__(self) -> None:
        self._answered: set[tuple[Place, bool]] = set()

    def landed(self, message: Message) -> None:
        self._answered.add(((message.source, message.offset), message.topic == DEAD_LETTERS))

    def quiet(self) -> None:
        for place, fate in self.schedule.fates.items():
            if fate == "dropped":
                continue
            buried = fate not in ("result", "tombstone")
            found = (place, buried) in self._answered
            if not found and self.schedule.may_be_refused(place):
                found = (place, True) in self._answered
            if not found and not self.schedule.newer(place, math.inf):
                raise self.broken(f"{place} ({fate}) has no output")


class NothingDoubled(Judge):
    """Exactly once: whoever reads committed records sees every answer at most once, crashes or not."""

    def __init__(self) -> None:
        self._seen: set[Place] = set()

    def landed(self, message: Message) -> None:
        place = message.source, message.offset
        if self.schedule.exactly_once and place in self._seen:
            raise self.broken(f"{place} is answered twice")
        self._seen.add(place)


class NothingCommittedEarly(Judge):
    """A commit never covers a record whose output was not acknowledged, or which is left out for a newer one."""

    def __init__(self) -> None:
        self._taken: Counter[Partition] = Counter()
        """The offset behind the last record that anybody took."""
        self._acknowledged: set[Place] = set()
        self._checked: Counter[Partition] = Counter()
        """Records from the start of the log known to be acknowledged."""

    def took(self, who: Replica, columns: Columns) -> None:
        for partition, offset in zip(columns.partitions, columns.offsets, strict=True):
            self._taken[partition] = max(self._taken[partition], offset + 1)

    def reported(self, who: Replica, message: Message, error: str | None) -> None:
        if error is None:
            self._acknowledged.add((message.source, message.offset))

    def committing(self, who: Replica, positions: dict[Partition, int]) -> None:
        for partition, position in positions.items():
            log = self.schedule.kafka.logs[partition]
            index = self._checked[partition]
            while index < len(log) and log[index].offset < position:
                place = partition, log[index].offset
                answered = place in self._acknowledged or self.schedule.fates[place] == "dropped"
                if not answered and not self.schedule.newer(place, self._taken[partition]):
                    raise self.broken(f"{who.name} commits {position} before {place} is acknowledged")
                index += 1
            self._checked[partition] = index
            if position > self.schedule.kafka.end(partition):
                raise self.broken(f"{who.name} commits {position} of {partition}, beyond its end")


class OnlyTheOwner(Judge):
    """Nobody commits or publishes for a partition that was taken from it, and no commit goes back."""

    def __init__(self) -> None:
        self._owned: dict[Replica, set[Partition]] = {}

    def assigned(self, who: Replica, partitions: list[Partition]) -> None:
        self._owned.setdefault(who, set()).update(partitions)

    def left(self, who: Replica, partitions: list[Partition]) -> None:
        self._owned.setdefault(who, set()).difference_update(partitions)

    def committing(self, who: Replica, positions: dict[Partition, int]) -> None:
        if strange := set(positions) - self._owned.get(who, set()):
            raise self.broken(f"{who.name} commits {strange}, which it does not own")
        for partition, position in positions.items():
            committed = self.schedule.kafka.committed.get(partition, 0)
            if position < committed and not who.source.kicked:
                raise self.broken(f"{who.name} commits {position} of {partition} after {committed}")

    def sent(self, who: Replica, message: Message) -> None:
        if message.source not in self._owned.get(who, set()):
            raise self.broken(f"{who.name} publishes for {message.source}, which it does not own")


class InOrder(Judge):
    """While a replica holds a partition (and does not read it again), each output partition gets its answers in
    the order of the input (unless `order: none`) and each once."""

    def __init__(self) -> None:
        self._sent: dict[tuple[Replica, Partition], dict[tuple[str, int], list[int]]] = {}

    def assigned(self, who: Replica, partitions: list[Partition]) -> None:
        for partition in partitions:
            self._sent[who, partition] = {}

    def sought(self, who: Replica, positions: dict[Partition, int]) -> None:
        self.assigned(who, list(positions))

    def sent(self, who: Replica, message: Message) -> None:
        place = message.topic, message.partition
        before = self._sent.setdefault((who, message.source), {}).setdefault(place, [])
        offset = message.offset
        if offset in before or (self.schedule.ordered and before and offset < before[-1]):
            raise self.broken(f"{who.name}: {message.source} offset {offset} after {before} to {place}")
        before.append(offset)


class BytesBounded(Judge):
    """The byte budget holds, and nothing of it is left behind."""

    def turned(self, replica: Replica) -> None:
        budget = replica.budget
        # one record always may come, and go; a take does not count keys and headers
        slack = ONE_RECORD_BYTES + self.schedule.slab_records * 200
        if not 0 <= budget.held <= budget.limit_bytes + slack:
            raise self.broken(f"{replica.name} holds {budget}")
        held = replica.window.held_bytes()
        if held > budget.held:
            raise self.broken(f"{replica.name} holds {held} bytes of records and counts {budget.held}")

    def quiet(self) -> None:
        for replica in self.schedule.replicas:
            if replica.budget.held != self.schedule.kept_bytes(replica):
                raise self.broken(f"{replica.name} is idle and holds {replica.budget}")
            if replica.window.records:
                raise self.broken(f"{replica.name} is idle and counts {replica.window.records} in flight")


class HandedOverAtOnce(Judge):
    """A partition with no work in flight is given away without waiting for anything."""

    def __init__(self) -> None:
        self._idle = False
        self._said = 0
        """Log lines of the replica before."""

    def revoking(self, who: Replica, partitions: list[Partition]) -> None:
        busy = _busy(who.window, partitions)
        self._idle = bool(partitions) and not busy and not who.conductor.membership.rewinding
        self._said = len(who.log.lines)

    def left(self, who: Replica, partitions: list[Partition]) -> None:
        said = dict(who.log.lines[self._said :]) if self._idle else {}
        if "rewind" not in said and not said.get("revoked", {}).get("finished", True):
            raise self.broken(f"{who.name} did not finish with {partitions}, of which it held nothing")
        self._idle = False


class NothingAnsweredAgain(Judge):
    """Who leaves in order has committed behind every answer it published."""

    def __init__(self) -> None:
        self._behind: dict[Replica, dict[Partition, int]] = {}
        """Offset behind the last acknowledged answer of each partition held."""
        self._left: dict[Partition, int] = {}

    def assigned(self, who: Replica, partitions: list[Partition]) -> None:
        for partition in partitions:
            self._behind.setdefault(who, {}).pop(partition, None)

    def reported(self, who: Replica, message: Message, error: str | None) -> None:
        if error is None:
            behind = self._behind.setdefault(who, {})
            behind[message.source] = max(message.offset + 1, behind.get(message.source, 0))

    def left(self, who: Replica, partitions: list[Partition]) -> None:
        behind = self._behind.get(who, {})
        self._left = {partition: behind.pop(partition, 0) for partition in partitions}

    def ended(self, replica: Replica, drained: bool) -> None:
        gave_back = any(event == "given_back" for event, _ in replica.log.lines)
        refused = (
            replica.source.refuse_commits or not self.schedule.kafka.up
        )  # a broker that is away takes no commit
        excused = replica.disturbed or refused or gave_back or not self.schedule.ordered
        if not drained or excused:
            return
        for partition, position in self._left.items():
            committed = self.schedule.kafka.committed.get(partition, 0)
            if committed < position:
                raise self.broken(
                    f"{replica.name} left {partition} at {committed}, answered up to {position}"
                )


class DeadLettersAccountedFor(Judge):
    """The bad records are dead letters, for the right reason, and no good one is."""

    def landed(self, message: Message) -> None:
        place = message.source, message.offset
        fate = self.schedule.fates[place]
        if message.topic == DEAD_LETTERS and message.value is not None and message.value.startswith(b"fussy"):
            model = (dict(message.headers or ())["streaminfer.model"] or b"").decode()
            if fate == "result" and refuses(model.rpartition("@")[2], message.value):
                fate = "invalid"
        if message.topic != DEAD_LETTERS:
            if fate not in ("result", "tombstone") or (message.value is None) != (fate == "tombstone"):
                raise self.broken(f"{place} should be {fate} and gave {message.value!r}")
            return
        headers = dict(message.headers or ())
        reason = (headers["streaminfer.error.reason"] or b"").decode()
        if reason != fate:
            raise self.broken(f"{place} should be {fate} and is a dead letter: {reason}")
        if headers["__connect.errors.topic"] != message.source.topic.encode():
            raise self.broken(f"the dead letter of {place} names another topic")


class VersionOfItsKey(Judge):
    """Every answer and dead letter is of the version, and names the version, that its key had when its slab was closed."""

    def __init__(self) -> None:
        self._promised: dict[tuple[Replica, Place], str] = {}

    def submitted(self, who: Replica, batch: Batch) -> None:
        state = next(r for r in who.rollouts if r.route is batch.route).state
        columns, answers = batch.columns, batch.servable.model_version
        for partition, offset, key in zip(columns.partitions, columns.offsets, columns.keys, strict=True):
            wanted = state.version_of(key, b"%d/%d" % (partition.number, offset))
            if answers != wanted:
                raise self.broken(
                    f"{who.name}: {partition} {offset} of {key!r} goes to {answers}, not {wanted}"
                )
            self._promised[who, (partition, offset)] = answers

    def sent(self, who: Replica, message: Message) -> None:
        promised = self._promised.get((who, (message.source, message.offset)))
        if promised is None or (message.value is None and message.topic != DEAD_LETTERS):
            return  # decided without a model
        if message.topic == DEAD_LETTERS:
            named = (dict(message.headers or ())["streaminfer.model"] or b"").decode().rpartition("@")[2]
        else:
            named = (message.value or b"").decode().partition(" v")[2] or "1"
        if named != promised:
            raise self.broken(f"{who.name}: {message.source} {message.offset} names {named}, not {promised}")


class HeldRecordsWait(Judge):
    """Nothing of a route that is held goes to the pool, except what is answered again."""

    def __init__(self) -> None:
        self._slabs: set[object] = set()
        self._turn: set[object] = set()

    def submitted(self, who: Replica, batch: Batch) -> None:
        again = batch.slab in self._slabs
        self._turn.add(batch.slab)
        if not again and any(r.held and r.route.topics & batch.route.topics for r in who.rollouts):
            raise self.broken(f"{who.name} works on {batch} while it is held")

    def turned(self, replica: Replica) -> None:
        self._slabs |= self._turn
        self._turn.clear()


class CountersReconcile(Judge):
    """in = ok + dead_letter + dropped + in flight, and the numbers are what the broker saw."""

    def __init__(self) -> None:
        self._acknowledged: dict[Replica, Counter[str]] = {}

    def reported(self, who: Replica, message: Message, error: str | None) -> None:
        if error is None:
            outcome = "dead_letter" if message.topic == DEAD_LETTERS else "ok"
            self._acknowledged.setdefault(who, Counter())[outcome] += 1

    def turned(self, replica: Replica) -> None:
        meters = replica.meters
        if min(meters.in_flight.values(), default=0) < 0:
            raise self.broken(f"{replica.name} settled more than it took: {meters.in_flight}")
        told = self._acknowledged.get(replica, {})
        for outcome in ("ok", "dead_letter"):
            if meters.records[outcome] > told.get(outcome, 0):
                raise self.broken(
                    f"{replica.name} counts {meters.records[outcome]} {outcome}, {told.get(outcome, 0)} were acknowledged"
                )

    def quiet(self) -> None:
        for replica in self.schedule.replicas:
            self._same(replica)

    def _same(self, replica: Replica) -> None:
        records, told = replica.meters.records, self._acknowledged.get(replica, {})
        if any(replica.meters.in_flight.values()):
            raise self.broken(f"{replica.name} is idle and counts {replica.meters.in_flight} in flight")
        if replica.disturbed:
            return
        for outcome in ("ok", "dead_letter"):
            if records[outcome] != told.get(outcome, 0):
                raise self.broken(
                    f"{replica.name} counts {records[outcome]} {outcome}, the broker {told.get(outcome, 0)}"
                )


class Cases(Judge):
    """No judge: counts how often the hard cases are met, for a judge that never saw the limit has proved nothing."""

    def __init__(self) -> None:
        self._revoking: Replica | None = None

    def _met(self, case: str, times: bool = True) -> None:
        self.schedule.cases[case] += times

    def revoking(self, who: Replica, partitions: list[Partition]) -> None:
        self._revoking = who
        if who.window.busy(partitions):
            self._met("revoke with work in flight")
            who.disturbed = True
        ends = [set(batch.slab.turn.ends) for batch in who.pool.held]
        self._met(
            "revoke of a part of a slab",
            any(mine & set(partitions) and mine - set(partitions) for mine in ends),
        )

    def left(self, who: Replica, partitions: list[Partition]) -> None:
        self._revoking = None

    def lost(self, who: Replica, partitions: list[Partition]) -> None:
        self._met("lost with work in flight", who.window.busy(partitions))
        self._met("lost with outputs not handed over", len(who.outbox) > 0)
        who.disturbed = True

    def sought(self, who: Replica, positions: dict[Partition, int]) -> None:
        self._met("rewind")
        self._met("rewind during a revoke", self._revoking is who)
        who.disturbed = True

    def queue_full(self, who: Replica, taken: int, offered: int) -> None:
        self._met("queue full within a send", 0 < taken < offered)

    def turned(self, replica: Replica) -> None:
        paused = replica.conductor.paused
        self._met("assignment paused", bool(paused))
        self._met("one intake paused, another not", bool(paused) and paused != replica.source.topics)
        self._met("turn exactly once", self.schedule.exactly_once)
        self._met("turn without order", not self.schedule.ordered)
        self._met("budget used up", replica.budget.held >= replica.budget.limit_bytes)

    def ended(self, replica: Replica, drained: bool) -> None:
        late = sum(event == "revoked" and not fields["finished"] for event, fields in replica.log.lines)
        self.schedule.cases["revoke over its budget"] += late
        self._met("drained", drained)


def all_judges() -> list[Judge]:
    return [
        NothingLost(),
        NothingDoubled(),
        NothingCommittedEarly(),
        OnlyTheOwner(),
        InOrder(),
        BytesBounded(),
        HandedOverAtOnce(),
        NothingAnsweredAgain(),
        DeadLettersAccountedFor(),
        VersionOfItsKey(),
        HeldRecordsWait(),
        CountersReconcile(),
        Cases(),
    ]
