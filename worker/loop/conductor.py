"""The main loop: one thread that owns every Kafka handle and turns take, submit, collect, publish, commit.

Nothing else touches the consumer, the producer or the window; the pool's threads run the engine and hand
batches back through one mailbox. Rebalance and delivery callbacks arrive inside our own calls, on this thread.

``rewind`` is the one recovery verb: give up everything in flight and read again from the last settled position.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from worker.batch import Batch, Columns, Partition, Span, total_bytes
from worker.errors import (
    ClientFatal,
    DeadLetterLimit,
    DeliveryFailed,
    Rejection,
    Stalled,
    class_path,
)
from worker.loop.admission import Admission
from worker.loop.caution import Caution
from worker.loop.delivery import Delivery
from worker.loop.openslab import OpenSlab
from worker.loop.outbox import Outbox, Sink, tally
from worker.loop.pace import Pace
from worker.loop.pool import Returned
from worker.loop.window import Slab, Window

TICK_S = 0.1
"""Longest wait for anything: rebalances, signals and snapshots are served this often."""
BUSY_POLL_S = 0.001
"""Wait for records while results are due (librdkafka counts whole milliseconds: less would be a spin)."""
REWINDS_MAX = 3
"""Rewinds in a row without a commit after which the client counts as fatal."""
GIVE_BACK_S = 5.0
"""Longest wait for an open transaction to be undone before leaving."""
SERVE_S = 0.05
"""How often the source is asked, for the group's sake, while nothing can be submitted; it may give a record then."""
SPARE_RECORDS = 64
"""So many of those join a full open slab before the assignment is paused."""
RESUME_SHARE = 0.5
"""A paused assignment is resumed when this share of the byte budget is free: every pause throws the prefetch away."""


class Listener(Protocol):
    """Told of rebalances, inside the source's own calls, on the thread that makes them."""

    def on_assign(self, partitions: list[Partition]) -> None: ...

    def on_revoke(self, partitions: list[Partition]) -> None: ...

    def on_lost(self, partitions: list[Partition]) -> None: ...


class Source(Protocol):
    """Where records come from."""

    def subscribe(self, listener: Listener) -> None: ...

    def take(self, timeout_s: float, most: int, wanted_bytes: int) -> tuple[Columns, list[Span]]:
        """Records of the assignment in force when it returns; serves rebalances."""

    def pause_all(self) -> None: ...

    def resume_all(self) -> None: ...

    def seek(self, positions: dict[Partition, int]) -> None: ...

    def close(self, timeout_s: float) -> None: ...

    def commit(
        self, positions: dict[Partition, int], wait: bool, metadata: dict[Partition, str]
    ) -> dict[Partition, int]: ...

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        """Where reading of these partitions began, with the metadata committed there, where that is known."""

    @property
    def fatal(self) -> str | None: ...


class Pool(Protocol):
    """Takes batches through the engine."""

    outstanding: int

    @property
    def free(self) -> bool: ...

    def submit(self, batch: Batch) -> None: ...

    def collect(self, timeout_s: float = 0.0) -> list[Returned]: ...


class Meters(Protocol):
    """What the loop tells telemetry: per batch and slab, never per record."""

    def taken(self, pipeline: str, records: int, nbytes: int = 0) -> None: ...

    def counted(self, pipeline: str, ok: int = 0, dead_letter: int = 0, dropped: int = 0) -> None: ...

    def sent(self, nbytes: int) -> None: ...

    def error(self, pipeline: str, reason: str, stage: str, records: int = 1) -> None: ...

    def batch(self, pipeline: str, batch: Batch) -> None: ...

    def hold_us(self, pipeline: str, us: Any, records: int = 1) -> None: ...

    def publish_us(self, pipeline: str, us: Any, records: int = 1) -> None: ...

    def rebalance(self) -> None: ...

    def rewind(self, cause: str) -> None: ...

    def loop(self, section: str, seconds: float) -> None: ...


class Log(Protocol):
    """A structured logger."""

    def info(self, event: str, **fields: Any) -> Any: ...

    def warning(self, event: str, **fields: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """The loop's own numbers, derived from the settings and the warm-up."""

    worker_name: str
    slab_records: int
    """Most records in one slab."""
    max_wait_s: float
    """Longest time the first record of a slab waits for company while a slot is free; see :mod:`worker.loop.pace`."""
    drain_s: float
    revoke_s: float
    record_nbytes: int = 0
    """Tensors of one record, of the pipeline that needs most."""
    ordered: bool = True
    """False: each batch is published as it returns; commits stay per slab."""


class Conductor:
    """See the module. Everything it needs is given.

    Args:
        clock_ns: monotonic nanoseconds. wall_ms: Unix milliseconds. cpu_ns: CPU time of the process.
        on_turn: called once per turn, for metrics records and snapshots.
        sleep: waits so many seconds by the same clock.
    """

    def __init__(
        self,
        plan: Plan,
        source: Source,
        pool: Pool,
        window: Window,
        admission: Admission,
        outbox: Outbox,
        sink: Sink,
        delivery: Delivery,
        meters: Meters,
        log: Log,
        caution: Caution,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_ms: Callable[[], float] = lambda: time.time() * 1000,
        on_turn: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
        cpu_ns: Callable[[], int] = time.process_time_ns,
    ) -> None:
        self.plan = plan
        self.window = window
        self.stop_requested = False
        """Set from a signal handler: finish what is in flight and leave."""
        self.paused = False
        self.joined = False
        self.draining = False
        self.turned_ns = clock_ns()
        self._source = source
        self._pool = pool
        self._admission = admission
        self._outbox = outbox
        self._sink = sink
        self._delivery = delivery
        self._meters = meters
        self._log = log
        self._caution = caution
        self._clock_ns = clock_ns
        self._wall_ms = wall_ms
        self._on_turn = on_turn
        self._sleep = sleep
        self._open = OpenSlab()
        self._pace = Pace(plan.max_wait_s, clock_ns, cpu_ns)
        self._asked_ns = clock_ns()
        """When the source was asked last."""
        self._rewinds = 0
        self._unread: set[Partition] = set()
        """Partitions of which no record has come: what their last owner noted is looked up by then."""
        self._alone: Slab | None = None
        """One record under caution that is being worked on: nothing goes beside it."""
        self._given_up: Slab | None = None
        """A record that gets a dead letter for killing: that is committed before the next one is tried."""
        self._rewinding = False
        """Outputs on their way are being given up; where to go on reading is not known yet."""
        self._reserve_bytes = 0
        """What payloads must leave free: else a full open slab's first record goes beyond the budget."""
        self._reserve(plan.record_nbytes)
        self._starved = False
        """The open slab's first record does not fit the budget until something in flight is done."""

    # -- the loop ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until asked to stop, then drain.

        Raises:
            WorkerError: the process cannot go on; nothing beyond the settled positions was committed.
        """
        self._source.subscribe(self)
        try:
            while not self.stop_requested:
                self.turn()
        except DeadLetterLimit:
            self._keep_what_was_sent()
            raise
        self.drain()

    def turn(self) -> None:
        """One turn of the loop."""
        try:
            if self._rewinding:
                self._go_back()
            self.take()
            self.submit()
            self.collect()
            self.publish()
            self.commit()
        except DeliveryFailed as failure:
            self.rewind(failure)
        if self._source.fatal is not None:
            raise ClientFatal(f"the Kafka client cannot go on: {self._source.fatal}")
        self.turned_ns = self._clock_ns()
        self._on_turn()

    def take(self) -> None:
        """Read what there is into the open slab. When the window is full, wait for a batch instead."""
        if self._can_submit() and self._room() > 0:
            if self.paused and self.window.bytes <= self.window.limit_bytes * RESUME_SHARE:
                self._source.resume_all()
                self.paused = False
            if len(self._open) and not self._due():
                self._gather()
            else:
                self._rest()
                self._read(0.0 if len(self._open) else self._poll_s(), self._room())
        elif not self._due():  # else the open slab goes in this very turn
            self._wait()

    def submit(self) -> None:
        """Close the open slab while it is due, and send its batches to the pool."""
        while self._due():
            with self._timed("submit"):
                slab = self._close()
                if slab is None:
                    return
                self._count_taken(slab)
                self.window.admit(slab)
                for batch in slab.batches:
                    self._pool.submit(batch)

    def collect(self) -> None:
        """Batches that are back from the pool, outputs that were acknowledged."""
        self._receive(self._pool.collect())
        self._sink.poll()
        self._settle(self._delivery.acknowledged())

    def publish(self) -> None:
        """Release the slabs whose turn it is and hand their outputs to the producer, in order."""
        with self._timed("publish"):
            if not self._delivery.ready:
                return  # a transaction is being committed: finished slabs wait, everything else goes on
            while (slab := self.window.releasable()) is not None:
                slab.released_ns = self._clock_ns()
                self._count_released(slab)
                self._meters.sent(self._outbox.add(slab, self.window.epochs))
                if slab.receipt.handed_over:
                    self._hand_over(slab)
            for slab in self._outbox.push(self._delivery.on_delivery):
                self._hand_over(slab)

    def commit(self, wait: bool = False) -> None:
        """Commit the positions behind which everything is acknowledged, when it is time."""
        if self._given_up is not None:
            self._settle(self._delivery.hurry(self.window))
            wait = wait or not self.window.slabs
        if wait or self._delivery.due(self._clock_ns()):
            with self._timed("commit"):
                self._settle(self._delivery.commit(self.window, wait))
            self._count_commits()
        if self._given_up is not None and not self.window.slabs:
            self._passed(self._given_up)

    # -- the rare verbs ----------------------------------------------------------------------------------

    def rewind(self, failure: DeliveryFailed) -> None:
        """Give up everything in flight; read again from the last settled positions."""
        self._count_commits()  # of before: seen after it, they would take this one out of the row
        self._rewinds += 1
        self._meters.rewind(failure.cause)
        self._log.warning("rewind", cause=failure.cause, error=str(failure), in_a_row=self._rewinds)
        if self._rewinds > REWINDS_MAX:
            raise ClientFatal(f"{REWINDS_MAX} rewinds in a row brought no commit; the last cause: {failure}")
        for slab in self._outbox.clear():
            self._hand_over(slab)
        self._given_up = None  # it is read again, and refused again
        self._delivery.abandon()
        self._rewinding = True
        self._go_back()

    def _go_back(self) -> None:
        """The other half of a rewind, once it is known what was delivered.

        Until then nothing is begun, published or committed, but the loop turns: the group may need us.
        """
        targets = self._delivery.recovered(self.window)
        if targets is None:
            return
        self._rewinding = False
        self._discard_open()
        self._caution.resumed(targets)
        self._source.seek(targets)

    def drain(self) -> None:
        """Leave in order: take nothing more, finish and publish what is in flight, commit, leave the group.

        Raises:
            Stalled: the budget ended first; what was settled by then is committed.
        """
        self.draining = True
        self._log.info("drain", in_flight=self.window.records, budget_s=self.plan.drain_s)
        self._on_turn()  # the last look at the partitions' ends, for the last metrics
        deadline_ns = self._clock_ns() + int(self.plan.drain_s * 1e9)
        self.window.bytes -= self._open.clear()
        self._source.pause_all()
        try:
            done = self._finish(self.plan.drain_s, self.window.unsettled)
            self._commit_until(deadline_ns)
            self._release_notes(self.window.owned)
        except DeliveryFailed as failure:
            # whoever gets the partitions answers these records
            self._give_back(failure, deadline_ns)
            done = True
        self.close(max(1.0, self.plan.drain_s / 4))
        if not done:
            raise Stalled(
                f"drain took longer than limits.drain_s ({self.plan.drain_s} s): {self.window.slabs} slabs "
                "were not finished and will be read again"
            )
        self._log.info("drained")

    def close(self, timeout_s: float) -> None:
        """Leave the group."""
        self._source.close(timeout_s)
        self.joined = False

    def on_assign(self, partitions: list[Partition]) -> None:
        """These are ours from now on."""
        news = partitions or not self.joined  # a member that keeps what it has is told so at every rebalance
        self.joined = True
        self.window.assign(partitions)
        self._unread.update(partitions)
        self._look_up(partitions)
        self._meters.rebalance()
        if news:
            self._log.info("assigned", partitions=_names(partitions), owned=len(self.window.owned))

    def on_revoke(self, partitions: list[Partition]) -> None:
        """Hand partitions over cleanly: finish their slabs and commit, within ``revoke_s``."""
        self._meters.rebalance()
        started_ns = self._clock_ns()
        # a record that was not started is the new owner's; one in flight is finished here
        self.window.bytes -= self._open.drop(partitions)
        failed: DeliveryFailed | None = None
        try:
            # what is being undone is not ours to finish: the next owner reads it again
            done = not self._rewinding and self._finish(
                self.plan.revoke_s, lambda: self.window.unsettled(partitions)
            )
            self.commit(wait=True)
        except DeliveryFailed as failure:
            done, failed = False, failure
        self._release_notes(partitions)
        self.window.revoke(partitions)
        if failed is not None:
            self.rewind(failed)  # what stays ours; these partitions are the next owner's to read
        if partitions:
            took_ms = (self._clock_ns() - started_ns) / 1e6
            self._log.info("revoked", partitions=_names(partitions), finished=done, took_ms=round(took_ms, 1))

    def on_lost(self, partitions: list[Partition]) -> None:
        """They may have another owner already: nothing of them is published or committed any more."""
        self._meters.rebalance()
        self._caution.dropped(partitions)
        self.window.revoke(partitions)
        self._delivery.lost(partitions)
        self._discard_open()
        self._log.warning("lost", partitions=_names(partitions))

    def _commit_until(self, deadline_ns: int) -> None:
        """Commit, again where the broker refused: it does while the group rebalances.

        A commit waits on its connection behind the join that is under way and arrives with the generation of
        before. Only ``take`` tells what is still ours afterwards; the assignment is paused by now.
        """
        self.commit(wait=True)
        while self.window.committable() and self._clock_ns() < deadline_ns:
            self._source.take(TICK_S, 1, 1)
            self.commit(wait=True)

    def _keep_what_was_sent(self) -> None:
        """Commit what is before the slab that tripped the limit; that slab and all behind it stay unpublished."""
        deadline_ns = self._clock_ns() + int(self.plan.drain_s * 1e9)
        try:
            while self._delivery.waiting and self._clock_ns() < deadline_ns:
                self._sink.poll(BUSY_POLL_S)
                self._settle(self._delivery.acknowledged())
                self._settle(self._delivery.hurry(self.window))
            self.commit(wait=True)
        except DeliveryFailed as failure:  # not the reason why we end; what is not committed is read again
            self._give_back(failure, deadline_ns)

    def _give_back(self, failure: DeliveryFailed, deadline_ns: int) -> None:
        """Undo what is open, commit what was settled before it, and leave it at that.

        A transaction that cannot be undone now, with the broker away, is undone by its own time-out.
        """
        self._log.warning("given_back", error=str(failure))
        self._given_up = None
        self._delivery.abandon()
        undone_by_ns = self._clock_ns() + int(GIVE_BACK_S * 1e9)
        while (targets := self._delivery.recovered(self.window)) is None and self._clock_ns() < undone_by_ns:
            self._sink.poll(TICK_S)
        self._settle(self._delivery.acknowledged())
        if targets is not None:
            self._commit_until(deadline_ns)
            self._release_notes(self.window.owned)
        for slab in self.window.give_up():
            self._count_settled(slab)

    def _finish(self, budget_s: float, unfinished: Callable[[], bool]) -> bool:
        """Collect and publish until nothing is unfinished; False when the budget ended first."""
        deadline_ns = self._clock_ns() + int(budget_s * 1e9)
        while unfinished():
            left_s = (deadline_ns - self._clock_ns()) / 1e9
            if left_s <= 0:
                return False
            if self._rewinding:
                self._go_back()
            waiting = BUSY_POLL_S if self._delivery.waiting or not self._pool.outstanding else TICK_S
            if self._pool.outstanding:
                self._receive(self._pool.collect(min(waiting, left_s)))
            else:
                self._sink.poll(min(waiting, left_s))
            self.collect()
            self.publish()
            self._settle(self._delivery.hurry(self.window))
            self.turned_ns = self._clock_ns()
            if self.draining:
                self._on_turn()  # whoever asks how it goes asks now
        return True

    # -- caution: see worker.loop.caution ---------------------------------------------------------------------

    def _look_up(self, partitions: Iterable[Partition]) -> None:
        """What the last owner noted beside its positions; our own first note is committed at once."""
        found = self._source.starts(self._unread.intersection(partitions))
        self._unread -= found.keys()
        notes = self._caution.assigned(found)
        if notes:
            self.window.committed(self._source.commit({p: found[p][0] for p in notes}, True, notes))
        slow = {p: found[p][1] for p in found if p in self._caution}
        if slow:
            self._log.warning("read_cautiously", partitions=_names(slow), notes=list(slow.values()))

    def _release_notes(self, partitions: Iterable[Partition]) -> None:
        """A clean hand-over says that nobody died here."""
        unmoved = self._caution.unmoved(partitions)
        starts = {p: start for p, (start, _) in self._source.starts(unmoved).items()}
        if starts:
            self._source.commit(starts, True, {})
        self._caution.dropped(partitions)

    def _refusal(self, partition: Partition, offset: int) -> Rejection | None:
        """Why this record, which is under caution, is not worked on: it killed enough."""
        attempts = self._caution.attempts(partition, offset)
        if attempts < self._caution.max_crashes:
            return None
        message = f"the process died {attempts - 1} times while it worked on this record"
        return Rejection("crashed", "decode", message, class_path(self), "", attempts)

    def _tell(self, notes: dict[Partition, str]) -> None:
        positions = {partition: self.window.resume_at(partition) for partition in notes}
        self.window.committed(self._source.commit(positions, True, notes))

    def _must_wait(self) -> bool:
        """Whether the open slab's first record would have company, or be it, where one of them must be alone."""
        if self._given_up is not None:
            return True
        if not self._caution:
            return False
        if not self._delivery.ready:
            return (
                True  # a note committed beside a transaction under way would be at the position of before it
            )
        careful = self._caution.covers(*self._open.first)
        return self._pool.outstanding > 0 and (careful or self._alone is not None)

    # -- what the verbs are made of ----------------------------------------------------------------------

    def _room(self, spare: int = 0) -> int:
        """Records the open slab may still take; none when the byte budget is used up."""
        if self.window.bytes + self._reserve_bytes >= self.window.limit_bytes:
            return 0
        return self.plan.slab_records + spare - len(self._open)

    def _can_submit(self) -> bool:
        return self._pool.free and not self._outbox and not self._starved and not self._rewinding

    def _close(self) -> Slab | None:
        """The open slab, as much of it as may go; None when its first record does not fit the budget now."""
        first = self._open.first
        careful = self._caution.covers(*first)
        refused = self._refusal(*first) if careful else None
        most = min(self._open.stretch(self._caution.covers), self.plan.slab_records)
        if self._caution and not careful:
            for partition, offset in self._open.begins(most):
                self._caution.survived(partition, offset)  # what had to go alone lies before this, or is gone
        free = self.window.limit_bytes - self.window.bytes
        force = not self.window.slabs
        self._pace.closed(full=self._room() <= 0)
        slab = self._open.close(self._admission, free, self._wall_ms(), most, force, refused)
        self._starved = slab is None
        if slab is None:
            return None  # nothing is begun: no attempt either
        for batch in slab.batches:
            self._reserve(batch.cost_bytes // len(batch))
        if careful:
            self._caution.begin(*first)
        if self._caution.outdated:
            self._tell(self._caution.notes())
        if careful:
            self._went_alone(slab, refused is not None)
        return slab

    def _went_alone(self, slab: Slab, given_up: bool) -> None:
        if given_up:
            self._given_up = slab
        elif slab.batches:
            self._alone = slab
        else:
            self._passed(slab)

    def _reserve(self, nbytes: int) -> None:
        """Keep so much free of payloads: what one record needs to be worked on."""
        self._reserve_bytes = max(self._reserve_bytes, min(nbytes, self.window.limit_bytes // 2))

    def _passed(self, slab: Slab) -> None:
        """This one record under caution is behind us."""
        for span in slab.live_spans(self.window.epochs):
            self._caution.survived(span.partition, span.next_offset)
        self._alone = self._given_up = None

    def _due(self) -> bool:
        """Whether the open slab should go now. Its deadline counts only while a slot is free."""
        if not len(self._open) or not self._can_submit():
            return False
        if self._must_wait():
            return False
        if self._room() <= 0:
            # a budget used up by others frees itself; one used up by this slab alone must not wait for ever
            return self.window.bytes < self.window.limit_bytes or not self.window.slabs
        return self._left_s() <= 0

    def _left_s(self) -> float:
        """Until the open slab should go, full or not."""
        latest_ns = self._open.first_ns + int(self.plan.max_wait_s * 1e9)
        return (min(latest_ns, self._pace.next_ns) - self._clock_ns()) / 1e9

    def _rest(self) -> None:
        """Leave records with the client until the next slab may go: one take and one turn, instead of two each."""
        left_s = (self._pace.next_ns - self._clock_ns()) / 1e9
        busy = len(self._open) or self._pool.outstanding or self._caution or not self._delivery.ready
        if left_s > 0 and not busy:
            self._sleep(min(left_s, TICK_S))  # in a poll, every record and acknowledgement would wake us

    def _gather(self) -> None:
        """Let records come together until the open slab is due: a turn for each of them would cost more."""
        left_s = self._left_s()
        if self._pool.outstanding:
            self._receive(self._pool.collect(min(max(left_s, BUSY_POLL_S), TICK_S)))
        elif left_s > 0 and self._delivery.ready:
            self._sleep(min(left_s, TICK_S))  # in a poll, every acknowledgement would wake us
        else:
            self._sink.poll(BUSY_POLL_S)
        self._read(0.0, self._room())

    def _poll_s(self) -> float:
        return BUSY_POLL_S if self.window.slabs else TICK_S

    def _read(self, timeout_s: float, most: int) -> None:
        with self._timed("poll"):
            free = self.window.limit_bytes - self.window.bytes - self._reserve_bytes
            columns, spans = self._source.take(timeout_s, most, max(free, 1))
            if columns.values:
                if self._unread:
                    self._look_up({span.partition for span in spans})
                self.window.note(spans, columns.offsets)
                now_ns, now_ms = self._clock_ns(), self._wall_ms()
                self.window.bytes += self._open.append(columns, spans, now_ns, now_ms)
        self._asked_ns = self._clock_ns()

    def _wait(self) -> None:
        """Nothing can be submitted: wait for a batch or an acknowledgement, and keep our place in the group.

        Only the source's ``take`` serves rebalances; a record it may return joins the open slab. When there is no
        room for even that, the whole assignment is paused. That is put off for as long as it can be: the client
        throws away what it has fetched, and a model slower than the fetching would make it fetch everything many
        times over.
        """
        if self._room(SPARE_RECORDS) <= 0 and not self.paused:
            self._source.pause_all()
            self.paused = True
        with self._timed("wait"):
            if self._pool.outstanding:
                patience = BUSY_POLL_S if self._outbox or self._delivery.waiting else SERVE_S
                self._receive(self._pool.collect(patience))
            else:
                self._sink.poll(BUSY_POLL_S)
        if self._clock_ns() - self._asked_ns >= SERVE_S * 1e9:
            self._read(0.0, 1)

    def _receive(self, returned: Iterable[Returned]) -> None:
        for back in returned:
            if back.error is not None:
                raise back.error
            if back.batch.sick is not None:
                self._admission.rollouts[back.batch.route].sick(back.batch.servable, back.batch.sick)
            self._meters.batch(back.batch.route.name, back.batch)
            if not self.plan.ordered:
                self._meters.sent(self._outbox.add_batch(back.batch, self.window.epochs))
            self.window.returned(back.batch)
            self._starved = False
            if self._alone is not None and back.batch.slab is self._alone:
                self._passed(self._alone)

    def _hand_over(self, slab: Slab) -> None:
        self.window.sent(slab)
        self._starved = False
        self._delivery.handed_over(slab)

    def _settle(self, slabs: Iterable[Slab]) -> None:
        for slab in slabs:
            self.window.settle(slab)
            self._starved = False  # with nothing in flight any more, one record may go whatever it costs
            self._count_settled(slab)

    def _discard_open(self) -> None:
        self.window.bytes -= self._open.discard(self.window.epochs)

    # -- counting ----------------------------------------------------------------------------------------

    def _count_commits(self) -> None:
        if self._delivery.commits:
            self._delivery.commits = self._rewinds = 0

    def _count_taken(self, slab: Slab) -> None:
        if slab.one_route:
            nbytes = total_bytes(slab.columns.values)
            self._meters.taken(self._name(slab.routes[0]), len(slab.columns), nbytes)
            return
        for route, value in zip(slab.routes, slab.columns.values, strict=True):
            self._meters.taken(self._name(route), 1, len(value or b""))

    def _count_released(self, slab: Slab) -> None:
        for batch in slab.batches:
            hold_us = (slab.released_ns - batch.finished_ns) // 1000
            self._meters.hold_us(batch.route.name, max(0, hold_us), len(batch))

    def _count_settled(self, slab: Slab) -> None:
        # what was taken from us since (revoke, lost, rewind) is answered by whoever reads it next
        committed = slab.receipt.committed
        spans = slab.live_spans(self.window.epochs) if committed is None else committed
        counts = tally(slab, spans, self.plan.worker_name)
        publish_us = (self._clock_ns() - slab.released_ns) // 1000
        for name, count in counts.ok.items():
            self._meters.counted(name, ok=count)
            self._meters.publish_us(name, publish_us, count)
        for name, count in counts.dead_letter.items():
            self._meters.counted(name, dead_letter=count)
        for name, count in counts.dropped.items():
            self._meters.counted(name, dropped=count)
        for (name, reason, stage), count in counts.errors.items():
            self._meters.error(name, reason, stage, count)

    def _name(self, route: Any) -> str:
        return route.name if route is not None else self.plan.worker_name

    @contextmanager
    def _timed(self, section: str) -> Iterator[None]:
        started_ns = self._clock_ns()
        try:
            yield
        finally:
            self._meters.loop(section, (self._clock_ns() - started_ns) / 1e9)


def _names(partitions: Iterable[Partition]) -> list[str]:
    return [f"{partition.topic}/{partition.number}" for partition in partitions]
