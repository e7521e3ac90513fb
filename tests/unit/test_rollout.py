"""Who answers a route's records, and what is pinned to a slab and its batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import (
    DEAD_LETTERS,
    RESULTS,
    FakeClock,
    FakeKafka,
    FakePool,
    FakeRollout,
    FakeServable,
    FakeSink,
    FakeSource,
)
from world import Figures, make_loop

from worker.batch import Partition
from worker.errors import SickModel
from worker.loop.conductor import Conductor

A = Partition("in", 0)


class Counting(FakeRollout):
    """Counts how often it is asked who answers."""

    asked = 0

    def choose(self) -> FakeServable:
        self.asked += 1
        return super().choose()


class Loop:
    """One replica whose batches come back when the test says so."""

    def __init__(self, rollout: FakeRollout) -> None:
        self.kafka = FakeKafka(FakeClock(), {"in": 1}, {RESULTS: 1})
        self.pool = FakePool(self.kafka.clock)
        self.pool.finishes = False
        source, sink = FakeSource(self.kafka), FakeSink(self.kafka)
        world = make_loop(self.kafka.clock, source, sink, self.pool, [rollout], Figures())
        self.conductor: Conductor = world.conductor
        source.subscribe(self.conductor.membership)
        self.kafka.rebalance()

    def turn(self) -> None:
        for _ in range(20):
            self.conductor.turn()

    def take(self, *values: bytes) -> None:
        """Send records, and turn until they are in the pool."""
        for value in values:
            self.kafka.append(A, value)
        before = self.pool.outstanding
        for _ in range(100):
            self.conductor.turn()
            if self.pool.outstanding > before:
                return
        raise AssertionError("the records did not reach the pool")


def test_a_dead_letter_names_the_version_that_refused_the_record() -> None:
    """A batch is pinned to its servable: its dead letters name that one, even when another one answers by then."""
    rollout = FakeRollout()
    loop = Loop(rollout)
    loop.take(b"bad")
    rollout.stable = replace(rollout.stable, model_version="2")
    loop.pool.finishes = True
    loop.turn()
    (letter,) = loop.kafka.outputs(DEAD_LETTERS)
    assert dict(letter.headers or ())["streaminfer.model"] == b"digits@1"


def test_the_next_slab_is_answered_by_whoever_the_rollout_chooses_then() -> None:
    """A change of servables falls between two slabs: each batch keeps the one that it was made for."""
    rollout = FakeRollout()
    loop = Loop(rollout)
    loop.take(b"x")
    rollout.stable = replace(rollout.stable, model_version="2")
    loop.take(b"x")
    assert [batch.servable.label for batch in loop.pool.held] == ["digits@1", "digits@2"]


def test_the_rollout_is_asked_once_for_a_slab() -> None:
    """However many records and batches a slab has, its route's rollout is asked once."""
    rollout = Counting(max_size=1, slab_records=4)
    loop = Loop(rollout)
    before = rollout.asked
    loop.take(b"x", b"x", b"x")
    asked, slabs = rollout.asked - before, {id(batch.slab) for batch in loop.pool.held}
    assert len(loop.pool.held) == 3
    assert asked == len(slabs)


def test_a_sick_batch_is_not_published() -> None:
    """When a batch comes back with a sick servable, its rollout decides, and nothing of the batch is published."""
    loop = Loop(FakeRollout())
    loop.take(b"x", b"x")
    for batch in loop.pool.held:
        batch.sick = "its warm-up input no longer gives its known output"
    loop.pool.finish()
    with pytest.raises(SickModel, match=r"model digits is sick: its warm-up input"):
        loop.turn()
    assert loop.kafka.outputs(RESULTS) == []
    assert loop.kafka.committed.get(A, 0) == 0
