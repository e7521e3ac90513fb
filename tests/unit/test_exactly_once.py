"""What may become visible when partitions go: the transaction's own rules, without the loop around them."""

from __future__ import annotations

from collections import Counter

import pytest
from fakes import FakeClock, FakeKafka, FakeSink, FakeSource, FakeTransactions

from worker.batch import Columns, Partition, Span
from worker.delivery import ExactlyOnce
from worker.errors import DeliveryFailed
from worker.window import Slab, Window

A, B = Partition("in", 0), Partition("in", 1)


class Desk:
    """A transaction with one slab of both partitions in it, nothing committed."""

    def __init__(self) -> None:
        clock = FakeClock()
        self.kafka = FakeKafka(clock, {"in": 2})
        source, sink = FakeSource(self.kafka), FakeSink(self.kafka)
        self.counts: Counter[str] = Counter()
        self.delivery = ExactlyOnce(
            FakeTransactions(self.kafka, source, sink),
            0.1,
            1_000,
            5.0,
            clock,
            lambda r: self.counts.update([r]),
        )
        self.kafka.owner = {A: source, B: source}
        self.window = Window(1 << 20)
        self.window.assign([A, B])
        self.slab = Slab(
            Columns([b"a", b"b"], [None] * 2, [None] * 2, [0, 0], [0, 0], [A, B]),
            [Span(A, 0, 1, 1), Span(B, 1, 2, 1)],
            0,
            0.0,
        )
        self.window.note(self.slab.spans, [0, 0])
        self.window.admit(self.slab)
        assert self.window.releasable() is self.slab
        self.delivery.on_delivery(self.slab)
        self.window.sent(self.slab)
        self.delivery.handed_over(self.slab)


def test_a_transaction_moves_the_positions_of_its_slabs() -> None:
    """Both partitions at once, and the slab is settled."""
    desk = Desk()
    assert desk.delivery.commit(desk.window, wait=True) == [desk.slab]
    assert desk.kafka.committed == {A: 1, B: 1}
    assert desk.counts == {"committed": 1}


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
    assert desk.delivery.settled() == [desk.slab]
    assert desk.counts == {"aborted": 1}


def test_a_loss_is_over_once_the_transaction_is_given_up() -> None:
    """Whatever the reason was: it does not end the next transaction too."""
    desk = Desk()
    desk.window.revoke([A])
    desk.delivery.lost([A])
    desk.delivery.abandon()
    while desk.delivery.recovered(desk.window) is None:
        pass
    assert desk.delivery.settled() == [desk.slab]
