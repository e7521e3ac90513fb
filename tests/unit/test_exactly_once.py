"""What may become visible when partitions go: the transaction's own rules, without the loop around them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from fakes import FakeClock, FakeKafka, FakeSink, FakeSource, FakeTransactions
from stream import wait_for

from worker.batch import Columns, Partition, Span
from worker.errors import DeliveryFailed, TransactionFailed
from worker.loop.budget import Budget
from worker.loop.exactly_once import ExactlyOnce
from worker.loop.slab import Slab
from worker.loop.tasks import spawn
from worker.loop.window import Window

A, B = Partition("in", 0), Partition("in", 1)


class Desk:
    """A transaction with one slab of both partitions in it, nothing committed."""

    def __init__(self, client: Callable[..., FakeTransactions] = FakeTransactions) -> None:
        clock = FakeClock()
        self.kafka = FakeKafka(clock, {"in": 2})
        source, sink = FakeSource(self.kafka), FakeSink(self.kafka)
        self.transactions = client(self.kafka, source, sink)
        self.counts: Counter[str] = Counter()
        self.delivery = ExactlyOnce(
            self.transactions,
            0.1,
            1_000,
            5.0,
            clock,
            lambda r: self.counts.update([r]),
            spawn,
        )
        self.kafka.owner = {A: source, B: source}
        self.window = Window()
        self.window.assign([A, B])
        self.slab = self.admit(0)
        assert self.window.releasable() is self.slab
        self.delivery.on_delivery(self.slab)
        self.window.sent(self.slab)
        self.delivery.handed_over(self.slab)

    def admit(self, offset: int) -> Slab:
        """A slab with this record of each partition, to be worked on."""
        slab = Slab(
            Columns([b"a", b"b"], [None] * 2, [None] * 2, [0, 0], [offset] * 2, [A, B]),
            [Span(A, 0, 1, offset + 1), Span(B, 1, 2, offset + 1)],
            0,
            0.0,
            Budget(1 << 20).shares[0].claim(),
        )
        self.window.note(slab.spans, [offset] * 2)
        self.window.admit(slab)
        return slab

    def targets(self) -> dict[Partition, int]:
        """Where to read from again, once that is known."""
        return wait_for(lambda: self.delivery.recovered(self.window), "the transaction to be undone", 10)


def test_a_transaction_moves_the_positions_of_its_slabs() -> None:
    """Both partitions at once, and the slab is settled."""
    desk = Desk()
    assert desk.delivery.commit(desk.window, wait=True) == [desk.slab]
    assert desk.kafka.committed == {A: 1, B: 1}
    assert desk.counts == {"committed": 1}


def test_other_bounds_count_for_the_open_transaction() -> None:
    """It is due when its own beginning is as long ago as the new bound says."""
    desk = Desk()
    now_ns = desk.kafka.clock.ns
    assert not desk.delivery.due(now_ns + 50_000_000)
    desk.delivery.bound(0.02, 1_000, 5.0)
    assert not desk.delivery.due(now_ns + 19_000_000)
    assert desk.delivery.due(now_ns + 21_000_000)


def test_outputs_of_a_lost_partition_are_not_committed_by_a_revoke_after_it() -> None:
    """Both can come in one poll: the revoke commits before the loop has heard of the loss."""
    desk = Desk()
    desk.window.revoke([A])
    desk.delivery.lost([A])
    with pytest.raises(DeliveryFailed, match="in/0"):
        desk.delivery.commit(desk.window, wait=True)
    assert desk.kafka.committed == {}
    desk.delivery.abandon()
    while desk.delivery.recovered(desk.window) is None:
        pass
    assert desk.delivery.acknowledged() == [desk.slab]
    assert desk.counts == {"aborted": 1}


def test_a_loss_is_over_once_the_transaction_is_given_up() -> None:
    """Whatever the reason was: it does not end the next transaction too."""
    desk = Desk()
    desk.window.revoke([A])
    desk.delivery.lost([A])
    desk.delivery.abandon()
    while desk.delivery.recovered(desk.window) is None:
        pass
    assert desk.delivery.acknowledged() == [desk.slab]


def test_what_a_rewind_gave_up_does_not_pass_for_a_commit() -> None:
    """A slab that was being worked on then is settled without a transaction, which would end the row of rewinds."""
    desk = Desk()
    late = desk.admit(1)
    desk.delivery.abandon()
    assert desk.targets() == {A: 0, B: 0}
    assert desk.delivery.acknowledged() == [desk.slab]
    desk.window.sent(late)
    desk.delivery.handed_over(late)
    assert desk.delivery.commit(desk.window, wait=True) == [late]
    assert desk.delivery.commits == 0
    assert desk.counts == {"aborted": 1}


class Stuck(FakeTransactions):
    """A client of which one call does not return before it is let go."""

    def __init__(self, call: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.free = threading.Event()
        self._call = call

    def commit(self, *arguments: Any) -> None:
        self._wait("commit")
        super().commit(*arguments)

    def abort(self) -> None:
        self._wait("abort")
        super().abort()

    def _wait(self, call: str) -> None:
        if call == self._call:
            assert self.free.wait(10)


def test_a_commit_that_never_comes_back_is_given_up() -> None:
    """What is true is asked of the broker; whatever the call says later changes nothing."""
    desk = Desk(partial(Stuck, "commit"))
    desk.delivery.commit(desk.window, wait=False)
    assert desk.delivery.acknowledged() == []
    desk.transactions.hung = True
    with pytest.raises(DeliveryFailed, match="does not return"):
        desk.delivery.acknowledged()
    desk.delivery.abandon()
    assert desk.targets() == {A: 0, B: 0}
    assert desk.delivery.acknowledged() == [desk.slab]
    assert desk.window.committable() == {}
    assert desk.counts == {"unknown": 1}
    desk.transactions.free.set()


class AnswerLost(FakeTransactions):
    """Its commits work and nobody hears of it."""

    def commit(self, *arguments: Any) -> None:
        super().commit(*arguments)
        raise TransactionFailed("unknown", "the broker's answer was lost")


def test_a_commit_that_worked_after_all_counts() -> None:
    """Its records are answered and nobody reads them again: they are not given back. Those of an undone one are."""
    desk, undone = Desk(AnswerLost), Desk()
    with pytest.raises(DeliveryFailed, match="answer was lost"):
        desk.delivery.commit(desk.window, wait=True)
    for each in (desk, undone):
        each.delivery.abandon()
        each.targets()
        assert each.delivery.acknowledged() == [each.slab]
    assert desk.slab.receipt.committed == desk.slab.spans
    assert undone.slab.receipt.committed == []


def test_nothing_is_settled_or_handed_over_while_a_transaction_is_undone() -> None:
    """The loop goes on turning meanwhile; it reads again once it is known from where."""
    desk = Desk(partial(Stuck, "abort"))
    desk.delivery.abandon()
    assert not desk.delivery.ready
    assert desk.delivery.recovered(desk.window) is None
    assert desk.delivery.acknowledged() == []
    assert desk.delivery.commit(desk.window, wait=True) == []
    desk.transactions.free.set()
    assert desk.targets() == {A: 0, B: 0}
    assert desk.delivery.ready
    assert desk.delivery.acknowledged() == [desk.slab]


def test_a_position_of_another_process_does_not_count_as_ours_after_an_abort() -> None:
    """After a clear refusal no record of the transaction counts as answered here, also when the broker's position is beyond
    it: another process has the partitions and answered them."""
    desk = Desk()
    del desk.kafka.owner[A], desk.kafka.owner[B]
    with pytest.raises(DeliveryFailed):
        desk.delivery.commit(desk.window, wait=True)
    desk.kafka.committed.update({A: 1, B: 1})
    desk.delivery.abandon()
    desk.targets()
    assert desk.delivery.acknowledged() == [desk.slab]
    assert desk.slab.receipt.committed == []
