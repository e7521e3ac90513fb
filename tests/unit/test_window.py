"""The window: order, positions, epochs and bytes, against an oracle that keeps the whole history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from fakes import columns_of
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.batch import Batch, Columns, Outcomes, Partition, Span
from worker.loop.budget import Budget
from worker.loop.slab import Slab
from worker.loop.window import Window

A, B, C = Partition("in", 0), Partition("in", 1), Partition("more", 0)
PARTITIONS = (A, B, C)


class Held(Window):
    """A window beside the budget that its slabs' claims belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(1_000)
        self.assign(PARTITIONS)


def take(window: Held, runs: dict[Partition, Sequence[int]], batches: int = 1, cost: int = 10) -> Slab:
    """A slab with these offsets per partition, admitted; 100 bytes of payload."""
    columns, spans = Columns(), []
    for partition, offsets in runs.items():
        start = len(columns)
        columns.extend(columns_of(partition, offsets))
        spans.append(Span(partition, start, len(columns), offsets[-1] + 1))
    window.note(spans, columns.offsets)
    slab = Slab(columns, spans, 0, 0.0, window.budget.shares[0].claim(100))
    slab.batches = [
        Batch(slab, range(0), Columns(), None, None, 0, 0.0, cost_bytes=cost) for _ in range(batches)
    ]
    window.admit(slab)
    return slab


def give_back(window: Held, *slabs: Slab) -> None:
    for slab in slabs:
        for batch in slab.batches:
            window.returned(batch)


def release(window: Held) -> list[Slab]:
    """Everything whose turn it is, handed to the producer."""
    released = []
    while (slab := window.releasable()) is not None:
        window.sent(slab)
        slab.receipt.close()
        released.append(slab)
    return released


@pytest.fixture
def window() -> Held:
    return Held()


def test_slabs_of_one_partition_are_released_in_the_order_they_were_taken(window: Held) -> None:
    """A slab waits for an earlier one of its partition, also when it is finished first."""
    first, second = take(window, {A: [0, 1]}), take(window, {A: [2]})
    give_back(window, second)
    assert release(window) == []
    give_back(window, first)
    assert release(window) == [first, second]


def test_bodies_count_until_the_producer_has_them(window: Held) -> None:
    """When a batch is back its tensors are free, and its bodies count until the producer has them."""
    slab = take(window, {A: [0, 1]}, cost=400)
    assert window.budget.held == 500
    slab.batches[0].outcomes = Outcomes([b"x" * 70, None])
    give_back(window, slab)
    assert window.budget.held == 170
    release(window)
    assert window.budget.held == 0


def test_slabs_without_a_common_partition_do_not_wait_for_each_other(window: Held) -> None:
    """A slow slab holds up only slabs with records of its partitions."""
    slow, free = take(window, {A: [0]}), take(window, {B: [0]})
    give_back(window, free)
    assert release(window) == [free]
    assert window.busy([A])
    give_back(window, slow)
    assert release(window) == [slow]


def test_a_position_moves_over_acknowledged_slabs_only_from_the_first_on(window: Held) -> None:
    """An acknowledged slab behind one that is not moves nothing; with its predecessor both count, gaps included."""
    first, second = take(window, {A: [0, 5]}), take(window, {A: [9]})
    give_back(window, first, second)
    release(window)
    window.acknowledged(second)
    assert window.committable() == {}
    window.acknowledged(first)
    assert window.committable() == {A: 10}
    window.committed({A: 10})
    assert window.committable() == {}


def test_a_revoked_partition_leaves_its_slab_and_nothing_else_does(window: Held) -> None:
    """A slab goes on for the partition that stays and never moves the position of a revoked one."""
    slab = take(window, {A: [0], B: [0]})
    window.revoke([A])
    assert [span.partition for span in slab.live_spans(window.epochs)] == [B]
    window.assign([A])  # back already: what was in flight stays dead
    give_back(window, slab)
    release(window)
    window.acknowledged(slab)
    assert window.committable() == {B: 1}


def test_a_revoke_sets_free_what_waited_behind_it(window: Held) -> None:
    """A slab that waited for a slower one only in the revoked partition has its turn now."""
    slow, waiting = take(window, {A: [0]}), take(window, {A: [1], B: [0]})
    give_back(window, waiting)
    assert release(window) == []
    window.revoke([A])
    assert release(window) == [waiting]
    give_back(window, slow)
    assert release(window) == [slow]


def test_a_confirmation_for_a_partition_that_is_gone_is_ignored(window: Held) -> None:
    """A late commit report must not hide the position of a later ownership."""
    window.revoke([A])
    window.committed({A: 1})
    window.assign([A])
    slab = take(window, {A: [0]})
    give_back(window, slab)
    release(window)
    window.acknowledged(slab)
    assert window.committable() == {A: 1}


def test_a_rewind_goes_to_the_acknowledged_position_or_to_where_reading_began(window: Held) -> None:
    """A rewind leaves out a partition from which nothing was taken, because its reader has not moved."""
    done = take(window, {A: [0, 1]})
    give_back(window, done)
    release(window)
    window.acknowledged(done)
    late = take(window, {A: [2], B: [7]})
    assert window.rewind() == {A: 2, B: 7}
    give_back(window, late)
    release(window)
    window.acknowledged(late)
    assert window.committable() == {A: 2}


def test_a_rewind_believes_the_broker_where_only_it_can_know(window: Held) -> None:
    """What a transaction of unknown end committed is read from the broker, and counts as committed."""
    take(window, {A: [3], B: [5]})
    assert window.rewind({A: 4, B: None}) == {A: 4, B: 5}
    assert window.committable() == {}


def test_records_are_let_go_when_they_are_sent(window: Held) -> None:
    """When the producer has the outputs, neither the budget nor the memory holds the records any more."""
    slab = take(window, {A: [0]})
    assert window.budget.held == 110
    give_back(window, slab)
    assert window.budget.held == 100
    release(window)
    assert window.budget.held == 0
    assert len(slab.columns) == 0
    assert window.busy()


@dataclass
class Taken:
    """What the oracle knows of a slab."""

    slab: Slab
    ends: dict[Partition, int]
    alive: set[Partition]
    back: int = 0
    released: bool = False
    acknowledged: bool = False


@dataclass
class Oracle:
    """The rules, said naively over everything that ever happened."""

    slabs: list[Taken] = field(default_factory=list)
    base: dict[Partition, int] = field(default_factory=dict)
    """Positions a rewind kept."""

    def may_release(self) -> list[Slab]:
        """Complete, and no earlier unreleased slab shares a partition that is alive in both."""
        found = []
        for index, taken in enumerate(self.slabs):
            if taken.released or taken.back < len(taken.slab.batches):
                continue
            earlier = (t for t in self.slabs[:index] if not t.released)
            if not any(t.alive & taken.alive for t in earlier):
                found.append(taken.slab)
        return found

    def positions(self) -> dict[Partition, int]:
        positions = dict(self.base)
        for partition in PARTITIONS:
            for taken in self.slabs:
                if partition in taken.alive:
                    if not taken.acknowledged:
                        break
                    positions[partition] = taken.ends[partition]
        return positions

    def nbytes(self) -> int:
        return sum((0 if t.released else 100) + 10 * (len(t.slab.batches) - t.back) for t in self.slabs)

    def forget(self, partitions: Sequence[Partition]) -> None:
        for taken in self.slabs:
            taken.alive -= set(partitions)
        for partition in partitions:
            self.base.pop(partition, None)


class Twins:
    """A window and its oracle, led through the same events."""

    def __init__(self) -> None:
        self.window = Held()
        self.oracle = Oracle()
        self._next = dict.fromkeys(PARTITIONS, 0)

    def take(self, which: int, how: int) -> None:
        runs = {}
        for index, partition in enumerate(PARTITIONS):
            if which >> index & 1 and partition in self.window.owned:
                start = self._next[partition] + how % 3  # a gap
                runs[partition] = range(start, start + 1 + how % 2)
                self._next[partition] = runs[partition][-1] + 1
        if runs:
            slab = take(self.window, runs, batches=how % 3)
            self.oracle.slabs.append(Taken(slab, {p: r[-1] + 1 for p, r in runs.items()}, set(runs)))

    def give_back(self, which: int, _how: int) -> None:
        out = [t for t in self.oracle.slabs if t.back < len(t.slab.batches)]
        if out:
            taken = out[which % len(out)]
            self.window.returned(taken.slab.batches[taken.back])
            taken.back += 1

    def acknowledge(self, which: int, _how: int) -> None:
        sent = [t for t in self.oracle.slabs if t.released and not t.acknowledged]
        if sent:
            taken = sent[which % len(sent)]
            self.window.acknowledged(taken.slab)
            taken.acknowledged = True

    def revoke(self, which: int, _how: int) -> None:
        partition = PARTITIONS[which % 3]
        self.window.revoke([partition])
        self.oracle.forget([partition])

    def assign(self, which: int, how: int) -> None:
        self.revoke(which, how)
        self.window.assign([PARTITIONS[which % 3]])

    def rewind(self, _which: int, _how: int) -> None:
        kept = self.oracle.positions()
        targets = self.window.rewind()
        self.oracle.forget(PARTITIONS)
        self.oracle.base = {p: n for p, n in kept.items() if p in self.window.owned}
        assert {p: n for p, n in targets.items() if p in self.oracle.base} == self.oracle.base
        self._next |= targets

    def compare(self) -> None:
        """Release what has its turn, one by one as the oracle allows, then look at everything."""
        while (slab := self.window.releasable()) is not None:
            assert slab in self.oracle.may_release()
            self.window.sent(slab)
            slab.receipt.close()
            next(t for t in self.oracle.slabs if t.slab is slab).released = True
        assert self.oracle.may_release() == []
        assert self.window.committable() == self.oracle.positions()
        assert self.window.budget.held == self.oracle.nbytes()
        for partition in PARTITIONS:
            waiting = any(partition in t.alive and not t.acknowledged for t in self.oracle.slabs)
            assert self.window.busy([partition]) == waiting
        assert self.window.slabs == sum(not t.acknowledged for t in self.oracle.slabs)


USUAL = (Twins.take, Twins.give_back, Twins.acknowledge)
EVENTS = st.sampled_from([*USUAL, *USUAL, Twins.revoke, Twins.assign, Twins.rewind])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.integers(0, 7), st.integers(0, 5)), max_size=40))
def test_the_window_agrees_with_its_oracle(events: list[tuple[object, int, int]]) -> None:
    """The window agrees with a naive oracle over any sequence of events, with gaps between offsets."""
    twins = Twins()
    for event, which, how in events:
        event(twins, which, how)  # type: ignore[operator]
        twins.compare()
