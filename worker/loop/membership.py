"""What the consumer group asks of the loop: take partitions over, hand them over, lose them, rewind, leave.

Each of these has one :class:`Deadline`. ``rewind`` is the one recovery verb: give up everything in flight and read
again from the last acknowledged positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from worker.batch import Columns, Partition, Span
from worker.errors import ClientFatal, DeliveryFailed, Stalled
from worker.loop.accounts import Accounts
from worker.loop.budget import Budget
from worker.loop.delivery import Delivery
from worker.loop.intakes import Fetching, Intakes
from worker.loop.isolation import Isolation
from worker.loop.outbox import Outbox, Sink
from worker.loop.slab import Slab
from worker.loop.what_now import BUSY_POLL_S, TICK_S
from worker.loop.window import Window

REWINDS_MAX = 3
"""Rewinds in a row without a commit after which the client counts as fatal."""
UNDO_S = 5.0
"""Longest wait for an open transaction to be undone before leaving."""


class Listener(Protocol):
    """Told of rebalances, inside the source's own calls, on the thread that makes them."""

    def on_assign(self, partitions: list[Partition]) -> None: ...

    def on_revoke(self, partitions: list[Partition]) -> None: ...

    def on_lost(self, partitions: list[Partition]) -> None: ...


class Source(Fetching, Protocol):
    """Where records come from."""

    def subscribe(self, listener: Listener) -> None: ...

    def take(self, timeout_s: float, most: int, wanted_bytes: int) -> tuple[Columns, list[Span]]:
        """Records of the assignment in force when it returns; serves rebalances."""

    def seek(self, positions: dict[Partition, int]) -> None: ...

    def close(self, timeout_s: float) -> None: ...

    def commit(
        self, positions: dict[Partition, int], wait: bool, metadata: dict[Partition, str]
    ) -> dict[Partition, int]: ...

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        """Where reading of these partitions began, with the metadata committed there, where that is known."""

    @property
    def fatal(self) -> str | None: ...


class Log(Protocol):
    """A structured logger."""

    def info(self, event: str, **fields: Any) -> Any: ...

    def warning(self, event: str, **fields: Any) -> Any: ...


class Verbs(Protocol):
    """What membership needs of the loop: the second half of a turn, piece by piece."""

    def wait(self, longest_s: float) -> None:
        """Wait for a batch or an acknowledgement, so long at most."""

    def collect(self) -> None: ...

    def publish(self) -> None: ...

    def commit(self, wait: bool = False) -> None: ...

    def acknowledge(self, slabs: Iterable[Slab]) -> None: ...

    def hand_over(self, slab: Slab) -> None: ...

    def turned(self) -> None:
        """Say that the loop is alive."""


class Deadline:
    """So many seconds from now, by the loop's monotonic clock."""

    def __init__(self, clock_ns: Callable[[], int], seconds: float) -> None:
        self._clock_ns = clock_ns
        self._ends_ns = clock_ns() + int(seconds * 1e9)

    @property
    def left_s(self) -> float:
        """Seconds left; 0 or less when it is over."""
        return (self._ends_ns - self._clock_ns()) / 1e9

    @property
    def over(self) -> bool:
        return self.left_s <= 0


@dataclass(frozen=True, slots=True)
class Parts:
    """What the conductor and its membership share: one replica's loop, taken apart."""

    source: Source
    intakes: Intakes
    budget: Budget
    window: Window
    outbox: Outbox
    sink: Sink
    delivery: Delivery
    isolation: Isolation
    accounts: Accounts
    log: Log
    clock_ns: Callable[[], int]


class Membership:
    """See the module; the listener of the source.

    Args:
        drain_s: budget of a drain. revoke_s: budget of a revocation. Both may be changed; the next one has the new budget.
    """

    def __init__(self, parts: Parts, verbs: Verbs, drain_s: float, revoke_s: float) -> None:
        self.joined = False
        """The group has given this process an assignment, which may be empty. False again after partitions are lost,
        until the next assignment."""
        self.draining = False
        self.on_new: Callable[[list[Partition]], None] = lambda _partitions: None
        """Called with partitions that are ours from now on, before a record of them is taken."""
        self.rewinding = False
        """Outputs on their way are being given up. Where to read from again is not known yet."""
        self.drain_s = drain_s
        self.revoke_s = revoke_s
        self._verbs = verbs
        self._source = parts.source
        self._intakes = parts.intakes
        self._window = parts.window
        self._outbox = parts.outbox
        self._sink = parts.sink
        self._delivery = parts.delivery
        self._isolation = parts.isolation
        self._caution = parts.isolation.caution
        self._accounts = parts.accounts
        self._log = parts.log
        self._clock_ns = parts.clock_ns
        self._rewinds = 0
        """Rewinds since the last commit."""
        self._unread: set[Partition] = set()
        """Partitions from which no record was taken yet. The note of their last owner is looked up before the first
        record of them is worked on."""

    # -- the group's calls ---------------------------------------------------------------------------------

    def on_assign(self, partitions: list[Partition]) -> None:
        """These partitions are ours from now on."""
        # A member that keeps what it has is called at every rebalance with an empty list.
        changed = partitions or not self.joined
        self.joined = True
        if partitions:
            self.on_new(partitions)
        self._window.assign(partitions)
        self._unread.update(partitions)
        self.look_up(partitions)
        self._accounts.rebalance()
        if changed:
            self._log.info("assigned", partitions=_names(partitions), owned=len(self._window.owned))

    def on_revoke(self, partitions: list[Partition]) -> None:
        """Hand partitions over cleanly: finish their slabs and commit, within ``revoke_s``."""
        self._accounts.rebalance()
        started_ns = self._clock_ns()
        # The next owner reads a record that was not started. A record in flight is finished here.
        self._intakes.drop(partitions)
        failed: DeliveryFailed | None = None
        try:
            # What is being undone is not finished here: the next owner reads it again.
            done = not self.rewinding and self._finish(
                Deadline(self._clock_ns, self.revoke_s), lambda: self._window.busy(partitions)
            )
            self._verbs.commit(wait=True)
        except DeliveryFailed as failure:
            done, failed = False, failure
        if failed is None and not self.rewinding:
            self._release_notes(partitions)
        else:  # what is committed is not known: a note beside our position could take the committed one back
            self._caution.dropped(partitions)
        self._window.revoke(partitions)
        if failed is not None:
            self.rewind(failed)  # the partitions that stay; the revoked ones are the next owner's to read
        if partitions:
            took_ms = (self._clock_ns() - started_ns) / 1e6
            self._log.info("revoked", partitions=_names(partitions), finished=done, took_ms=round(took_ms, 1))

    def on_lost(self, partitions: list[Partition]) -> None:
        """Another process may own these partitions already: nothing of them is published or committed any more."""
        self.joined = False
        self._accounts.rebalance()
        self._caution.dropped(partitions)
        self._window.revoke(partitions)
        self._delivery.lost(partitions)
        self._intakes.discard(self._window.epochs)
        self._log.warning("lost", partitions=_names(partitions))

    # -- recovery ------------------------------------------------------------------------------------------

    def rewind(self, failure: DeliveryFailed) -> None:
        """Give up everything in flight; read again from the last acknowledged positions.

        Raises:
            ClientFatal: too many rewinds in a row brought no commit.
        """
        self.count_commits()  # first: seen later, an earlier commit would reset the count that begins below
        self._rewinds += 1
        self._accounts.rewind(failure.cause)
        self._log.warning("rewind", cause=failure.cause, error=str(failure), in_a_row=self._rewinds)
        if self._rewinds > REWINDS_MAX:
            raise ClientFatal(f"{REWINDS_MAX} rewinds in a row brought no commit; the last cause: {failure}")
        for slab in self._outbox.clear():
            self._verbs.hand_over(slab)
        self._isolation.forget()
        self._delivery.abandon()
        self.rewinding = True
        self.go_back()

    def go_back(self) -> None:
        """The second half of a rewind, once it is known what was delivered.

        Until then nothing is begun, published or committed. The loop turns all the same: the group may need us.
        """
        targets = self._delivery.recovered(self._window)
        if targets is None:
            return
        self.rewinding = False
        self._intakes.discard(self._window.epochs)
        self._caution.resumed(targets)
        self._source.seek(targets)

    def count_commits(self) -> None:
        """A commit ends the row of rewinds."""
        if self._delivery.commits:
            self._delivery.commits = self._rewinds = 0

    # -- leaving -------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Leave in order: take nothing more, finish and publish what is in flight, commit, leave the group.

        Raises:
            Stalled: the budget ended first. What was acknowledged by then is committed.
        """
        self.draining = True
        self._log.info("drain", in_flight=self._window.records, budget_s=self.drain_s)
        self._verbs.turned()  # the last metrics show the partitions' ends of this moment
        deadline = Deadline(self._clock_ns, self.drain_s)
        self._intakes.close()
        try:
            done = self._finish(deadline, self._window.busy)
            self._commit_until(deadline)
            self._release_notes(self._window.owned)
        except DeliveryFailed as failure:
            # The next owner of the partitions answers these records.
            self._give_back(failure, deadline)
            done = True
        self.leave(max(1.0, self.drain_s / 4))
        if not done:
            raise Stalled(
                f"drain took longer than limits.drain_s ({self.drain_s} s): {self._window.slabs} slabs "
                "were not finished and will be read again"
            )
        self._log.info("drained")

    def leave(self, timeout_s: float) -> None:
        """Leave the group."""
        self._source.close(timeout_s)
        self.joined = False

    def leave_at_the_limit(self) -> str:
        """Commit what lies before the slab that tripped the dead-letter limit, and publish its dead letters.

        That slab and all behind it stay uncommitted. Returns where the dead letters are, for the user.
        """
        deadline = Deadline(self._clock_ns, self.drain_s)
        try:
            while self._delivery.waiting and not deadline.over:
                self._sink.poll(BUSY_POLL_S)
                self._verbs.acknowledge(self._delivery.acknowledged())
                self._verbs.acknowledge(self._delivery.hurry(self._window))
            self._verbs.commit(wait=True)
        except DeliveryFailed as failure:
            # The limit is why the process ends. What is not committed is read again.
            self._give_back(failure, deadline)
        self.leave_by_choice()
        return self._outbox.leave_evidence(lambda: deadline.over)

    def note_timeout(self) -> None:
        """A batch is past its time-out and may end the process: tell the next owner what it died of."""
        started = {p: at for p in self._window.owned if (at := self._window.read_from(p)) is not None}
        notes = self._caution.overdue(started)
        if notes:
            self._source.commit({p: started[p] for p in notes}, True, notes)

    def leave_by_choice(self) -> None:
        """The process ends, and no record is to blame: what was begun counts no attempt."""
        self._release_notes(self._window.owned)

    def _give_back(self, failure: DeliveryFailed, deadline: Deadline) -> None:
        """Undo what is open, commit what was acknowledged before it, and end there.

        A transaction that cannot be undone now, because the broker is away, is ended by its own time-out.
        """
        self._log.warning("given_back", error=str(failure))
        self._isolation.forget()
        self._delivery.abandon()
        undo = Deadline(self._clock_ns, UNDO_S)
        while (targets := self._delivery.recovered(self._window)) is None and not undo.over:
            self._sink.poll(TICK_S)
        self._verbs.acknowledge(self._delivery.acknowledged())
        if targets is not None:
            self._commit_until(deadline)
            self._release_notes(self._window.owned)
        for slab in self._window.give_up():
            self._accounts.ended(slab, self._window.epochs)

    # -- parts of the above --------------------------------------------------------------------------------

    def _finish(self, deadline: Deadline, unfinished: Callable[[], bool]) -> bool:
        """Collect and publish until nothing is unfinished; False when the deadline came first."""
        while unfinished():
            if deadline.over:
                return False
            if self.rewinding:
                self.go_back()
            self._verbs.wait(deadline.left_s)
            self._verbs.collect()
            self._verbs.publish()
            self._verbs.acknowledge(self._delivery.hurry(self._window))
            self._verbs.turned()
        return True

    def _commit_until(self, deadline: Deadline) -> None:
        """Commit; repeat it when the broker refuses, as it does while the group rebalances.

        A commit waits on its connection behind the join that is under way, and then carries the generation from before
        it. Only ``take`` tells which partitions are still ours afterwards; every topic is paused by now.
        """
        self._verbs.commit(wait=True)
        while self._window.committable() and not deadline.over:
            self._source.take(TICK_S, 1, 1)
            self._verbs.commit(wait=True)

    # -- notes beside positions: see worker.loop.caution -----------------------------------------------------

    def first_records(self, partitions: Iterable[Partition]) -> None:
        """Records of these partitions were taken: their last owner's notes must be known before they are worked on."""
        if self._unread:
            self.look_up(partitions)

    def look_up(self, partitions: Iterable[Partition]) -> None:
        """Read what the last owner noted beside its positions. Our own first note is committed at once."""
        found = self._source.starts(self._unread.intersection(partitions))
        self._unread -= found.keys()
        notes = self._caution.assigned(found)
        if notes:
            self._window.committed(self._source.commit({p: found[p][0] for p in notes}, True, notes))
        slow = {p: found[p][1] for p in found if p in self._caution}
        if slow:
            self._log.warning("read_cautiously", partitions=_names(slow), notes=list(slow.values()))

    def _release_notes(self, partitions: Iterable[Partition]) -> None:
        """Tell the next owner, after a hand-over or an end of our own choice, that nobody died here."""
        notes = self._caution.forgiven(partitions)
        concerned = self._caution.unmoved(partitions) | notes.keys()
        positions = {p: start for p, (start, _) in self._source.starts(concerned).items()}
        positions |= {p: at for p in notes if (at := self._window.read_from(p)) is not None}
        if positions:
            self._source.commit(positions, True, notes)
        self._caution.dropped(partitions)


def _names(partitions: Iterable[Partition]) -> list[str]:
    return [f"{partition.topic}/{partition.number}" for partition in partitions]
