"""The main loop: one thread that owns every Kafka handle and turns take, submit, collect, publish, commit.

Nothing else touches the consumer, the producer or the window. The pool's threads run the engine and hand batches back
through one mailbox. Rebalance and delivery callbacks arrive inside the loop's own calls, on its thread.

What a turn waits for is decided by :func:`worker.loop.what_now.what_now`; what the group asks is answered by
:class:`worker.loop.membership.Membership`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from worker.batch import Batch, Lane, Partition
from worker.errors import ClientFatal, DeadLetterLimit, DeliveryFailed, SickModel
from worker.loop.awaited import Waits
from worker.loop.intake import Intake
from worker.loop.membership import Membership, Parts
from worker.loop.pool import Returned
from worker.loop.slab import Slab
from worker.loop.turns import NO_RUSH, NOBODY, Rush
from worker.loop.versions import Versions
from worker.loop.what_now import BUSY_POLL_S, SERVE_S, TICK_S, IntakeView, View, what_now


class Pool(Protocol):
    """Takes batches through the engine."""

    @property
    def outstanding(self) -> int:
        """Batches submitted and not collected."""

    @property
    def serial(self) -> bool:
        """Whether batches run one after the other, in the order in which they are submitted."""

    def free(self, lanes: Collection[Lane]) -> bool:
        """Whether a batch submitted now to any of these lanes would not just queue up."""

    def submit(self, batch: Batch) -> None: ...

    def trying_again(self) -> list[Batch]:
        """Submitted batches that wait for a further try of some records."""

    def collect(self, timeout_s: float = 0.0) -> list[Returned]: ...

    def waits(self) -> dict[Partition, Waits]:
        """What partitions wait for outside whose batches are not back."""


class Conductor:
    """See the module. Everything it needs is given.

    Args:
        drain_s, revoke_s: budgets of a drain and of a revocation.
        ordered: False: each batch is published as it returns; positions still move in order.
        wall_ms: Unix milliseconds. sleep: waits so many seconds by the clock of ``parts``.
        on_turn: called once per turn, for metrics records and snapshots.
    """

    def __init__(
        self,
        parts: Parts,
        pool: Pool,
        drain_s: float,
        revoke_s: float,
        ordered: bool = True,
        wall_ms: Callable[[], float] = lambda: time.time() * 1000,
        sleep: Callable[[float], None] = time.sleep,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self.ending = False
        """Set by another thread: the process ends in a moment, whatever is in flight."""
        self.ended = False
        """The loop has noted that no record is to blame for that."""
        self.batch_overdue = False
        """Set by the watchdog: a batch is past its time-out, and the process ends soon unless it stops."""
        self.stop_requested = False
        """Set from a signal handler: finish what is in flight and leave."""
        self.parts = parts
        self.window = parts.window
        self.budget = parts.budget
        self.membership = Membership(parts, self, drain_s, revoke_s)
        self.turned_ns = parts.clock_ns()
        """Monotonic clock at the end of the last turn."""
        self._ordered = ordered
        self._source = parts.source
        self._intakes = parts.intakes
        self._outbox = parts.outbox
        self._sink = parts.sink
        self._delivery = parts.delivery
        self._isolation = parts.isolation
        self._accounts = parts.accounts
        self._pool = pool
        self._versions = Versions(parts.intakes, pool.submit)
        self._clock_ns = parts.clock_ns
        self._wall_ms = wall_ms
        self._sleep = sleep
        self._on_turn = on_turn
        self._asked_ns = parts.clock_ns()
        """Monotonic clock when the source was asked last."""
        self._brought = False
        """The last take brought records."""

    # -- for other threads -------------------------------------------------------------------------------

    @property
    def joined(self) -> bool:
        return self.membership.joined

    @property
    def draining(self) -> bool:
        return self.membership.draining

    @property
    def paused(self) -> frozenset[str]:
        """Topics that are not fetched because their intake is full."""
        return self._intakes.paused

    def waits(self) -> dict[Partition, Waits]:
        """What partitions wait for outside; for the loop's own thread."""
        found = {p: waits for p, waits in self._intakes.waits().items() if self.window.oldest(p) is None}
        idle = (p for p in self.window.owned if self.window.oldest(p) is None)
        return found | self._pool.waits() | self._intakes.held(self._clock_ns(), idle)

    # -- the loop ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until asked to stop, then drain.

        Raises:
            WorkerError: the process cannot go on; nothing beyond the acknowledged positions was committed.
        """
        self._source.subscribe(self.membership)
        try:
            while not self.stop_requested:
                self.turn()
            self.membership.drain()
        except DeadLetterLimit as limit:
            raise DeadLetterLimit(f"{limit}; {self.membership.leave_at_the_limit()}") from None
        except SickModel:
            self.membership.leave_by_choice()
            raise

    def turn(self) -> None:
        """One turn of the loop."""
        try:
            self._note_ends()
            if self.membership.rewinding:
                self.membership.go_back()
            self.take()
            self.submit()
            self.collect()
            self.publish()
            self.commit()
        except DeliveryFailed as failure:
            self.membership.rewind(failure)
        if self._source.fatal is not None:
            raise ClientFatal(f"the Kafka client cannot go on: {self._source.fatal}")
        self.turned_ns = self._clock_ns()
        self._on_turn()

    def take(self) -> None:
        """Wait for what this turn needs, and read what there is into the open slabs."""
        now_ns = self._clock_ns()
        claimant = self._intakes.claimant(self._isolation.caution)
        intakes = [*self._intakes]
        rush = self._rush(claimant, now_ns)
        views = self._intakes.views(intakes, rush, lambda i: self._look(i, claimant, now_ns, rush.above))
        action = what_now(
            View(
                views,
                self._pool.outstanding > 0 or self._intakes.asking,
                self._delivery.ready,
                len(self._outbox) > 0 or self._delivery.waiting,
                self.window.slabs > 0 or self._intakes.asking,
                bool(self._isolation.caution),
            )
        )
        if action.wait_for != "nothing":
            with self._accounts.timed("wait"):
                self._wait_for(action.wait_for, action.wait_s)
        for intake, view in zip(intakes, views, strict=True):
            self._intakes.steer(intake, view)
        if action.serve and self._clock_ns() - self._asked_ns < SERVE_S * 1e9:
            return
        self._brought = False
        if action.read_s is not None:
            self._read(action.read_s, action.serve)

    def submit(self) -> None:
        """Close the open slabs that are due, and send their batches to the pool."""
        caution = self._isolation.caution
        in_flight = self.window.slabs > 0
        for told in self._intakes.fetch(self._clock_ns(), self._wall_ms(), in_flight, not caution):
            self._accounts.left_out(told)
        rush = self._rush(self._intakes.claimant(caution), self._clock_ns())
        for intake in self._intakes:
            if self._intakes.yields(intake, rush.first):
                continue
            while self._due(intake, self._intakes.claimant(caution), self._clock_ns(), rush.above):
                with self._accounts.timed("submit"):
                    slab = self._close(intake)
                    if slab is None:
                        break
                    self._accounts.taken(slab)
                    self.window.admit(slab)
                    for batch in slab.batches:
                        if batch.trial is not None:
                            self._versions.submitted(batch)
                        self._pool.submit(batch)
                    rush.went(intake)
                if rush.one_each:
                    break

    def collect(self) -> None:
        """Take batches that are back from the pool, and outputs that are acknowledged."""
        self._receive(self._pool.collect())
        self._versions.collect()
        self._sink.poll()
        self.acknowledge(self._delivery.acknowledged())

    def publish(self) -> None:
        """Release the slabs whose turn it is and hand their outputs to the producer, in order."""
        with self._accounts.timed("publish"):
            if not self._delivery.ready:
                return  # a transaction is being committed: finished slabs wait, everything else goes on
            while (slab := self.window.releasable()) is not None:
                slab.released_ns = self._clock_ns()
                self._accounts.released(slab)
                self._accounts.sent(self._outbox.add(slab, self.window.epochs))
                if slab.receipt.handed_over:
                    self.hand_over(slab)
            for slab in self._outbox.push(self._delivery.on_delivery):
                self.hand_over(slab)

    def commit(self, wait: bool = False) -> None:
        """Commit the positions behind which everything is acknowledged, when it is time."""
        given_up = self._isolation.given_up is not None
        if given_up:
            self.acknowledge(self._delivery.hurry(self.window))
            wait = wait or not self.window.slabs
        if wait or self._delivery.due(self._clock_ns()):
            with self._accounts.timed("commit"):
                self.acknowledge(self._delivery.commit(self.window, wait))
            self.membership.count_commits()
        if given_up and not self.window.slabs:
            self._isolation.committed()

    # -- parts of the verbs, also for membership ---------------------------------------------------------

    def wait(self, longest_s: float) -> None:
        """Wait for a batch or an acknowledgement, so long at most."""
        if self._pool.outstanding:
            waiting_s = BUSY_POLL_S if self._delivery.waiting else TICK_S
            self._receive(self._pool.collect(min(waiting_s, longest_s)))
        else:
            self._sink.poll(min(BUSY_POLL_S, longest_s))

    def acknowledge(self, slabs: Iterable[Slab]) -> None:
        """Every output of these slabs is acknowledged, or given up with its transaction."""
        for slab in slabs:
            self.window.acknowledged(slab)
            self._accounts.ended(slab, self.window.epochs)

    def hand_over(self, slab: Slab) -> None:
        """The producer has every output of the slab."""
        self.window.sent(slab)
        self._delivery.handed_over(slab)

    def _note_ends(self) -> None:
        """Tell the next owner of the partitions of an end that is coming and that no record caused by itself."""
        if self.batch_overdue:
            self.batch_overdue = False
            self.membership.note_timeout()
        if self.ending and not self.ended:
            self.membership.leave_by_choice()
            self.ended = True

    def turned(self) -> None:
        """Say that the loop is alive, inside a call that lasts longer than a turn."""
        self._note_ends()
        self.turned_ns = self._clock_ns()
        if self.draining:
            self._on_turn()

    # -- deciding ----------------------------------------------------------------------------------------

    def _may_submit(self, intake: Intake, claimant: Intake | None) -> bool:
        """Whether a slab of this intake could go now."""
        if self._outbox or self.membership.rewinding or (claimant is not None and claimant is not intake):
            return False
        if intake.held or intake.starves(self.window.slabs > 0):
            return False
        return self._pool.free(intake.lanes)

    def _due(self, intake: Intake, claimant: Intake | None, now_ns: int, above: int = NOBODY) -> bool:
        """Whether the open slab should go now. Its deadline counts only while a slot is free.

        Args:
            above: of a more important intake than this, a slab does not wait for company.
        """
        able = len(intake.open) > 0 and self._may_submit(intake, claimant)
        return able and self._is_complete(intake, now_ns, above)

    def _is_complete(self, intake: Intake, now_ns: int, above: int) -> bool:
        """Whether an open slab that may go should go now."""
        if self._isolation.holds_back(intake.open.first, self._pool.outstanding, self._delivery.ready):
            return False
        return intake.priority > above or intake.complete(now_ns, self.window.slabs > 0)

    def _rush(self, claimant: Intake | None, now_ns: int) -> Rush:
        """Who lets whom go first in this turn."""
        if not self._pool.serial:
            return NO_RUSH
        return self._intakes.rush(lambda intake: self._due(intake, claimant, now_ns), self._brought)

    def _look(self, intake: Intake, claimant: Intake | None, now_ns: int, above: int) -> IntakeView:
        may_submit, room = self._may_submit(intake, claimant), intake.room() > 0 and not intake.held
        pace_left_s = intake.pace_left_s(now_ns)
        newest = room and intake.newest_only and not (self._isolation.caution or self.membership.rewinding)
        if not len(intake.open):
            return IntakeView(may_submit, room, False, False, 0.0, pace_left_s, newest)
        due = may_submit and self._is_complete(intake, now_ns, above)
        return IntakeView(may_submit, room, True, due, intake.left_s(now_ns), pace_left_s, newest)

    # -- doing -------------------------------------------------------------------------------------------

    def _wait_for(self, what: str, seconds: float) -> None:
        if what == "pool":
            self._receive(self._pool.collect(seconds))
        elif what == "sink":
            self._sink.poll(seconds)
        else:
            self._sleep(seconds)

    def _read(self, timeout_s: float, one: bool) -> None:
        """Take records, and divide them among the intakes."""
        with self._accounts.timed("poll"):
            most, wanted_bytes = self._intakes.wanted()
            columns, spans = self._source.take(timeout_s, 1 if one else most, wanted_bytes)
            self._brought = bool(columns.values)
            if self._brought:
                self.membership.first_records(span.partition for span in spans)
                self.window.note(spans, columns.offsets)
                # Records under caution are worked on one by one: none of them may disappear behind another.
                thin = not self._isolation.caution
                for told in self._intakes.append(columns, spans, self._clock_ns(), self._wall_ms(), thin):
                    self._accounts.left_out(told)
        self._asked_ns = self._clock_ns()

    def _close(self, intake: Intake) -> Slab | None:
        """The open slab, as much of it as may go; None when its first record does not fit the budget now."""
        caution, opened = self._isolation.caution, intake.open
        most = min(intake.slab_records, self._of_a_kind(intake))
        if not caution:
            slab = intake.close(self._wall_ms(), most, self.window.slabs > 0)
        else:
            first = opened.first
            refused = self._isolation.refusal(first)
            most = min(most, opened.stretch(caution.covers))
            passed = [] if caution.covers(*first) else [*opened.begins(most)]
            slab = intake.close(self._wall_ms(), most, self.window.slabs > 0, refused)
            if slab is not None:  # otherwise nothing is begun, so that it is no attempt either
                self._isolation.passed_over(passed)
                self._isolation.begin(slab, first, refused is not None)
        if slab is not None:
            self._intakes.went(intake)
        return slab

    def _of_a_kind(self, intake: Intake) -> int:
        """How many records of the open slab may go together, so that no slab mixes partitions that wait behind a record
        that is tried again with others: those others would wait as well."""
        again = self._pool.trying_again()
        if not again:
            return len(intake.open)
        waiting = self.window.behind(again)
        return intake.open.of_a_kind(waiting.__contains__)

    def _receive(self, returned: Iterable[Returned]) -> None:
        for back in returned:
            if back.error is not None:
                raise back.error
            batch = back.batch
            if batch.sick is not None:
                self._versions.answer_again(batch, batch.sick)
                continue
            self._accounts.returned(batch)
            if batch.trial is not None:
                self._versions.returned(batch)
            if not self._ordered:
                self._accounts.sent(self._outbox.add_batch(batch, self.window.epochs))
            self.window.returned(batch)
            self._isolation.returned(batch)
