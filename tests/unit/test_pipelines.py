"""Two pipelines in one worker, over fakes: on topics of their own neither waits for the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes import (
    DEAD_LETTERS,
    RESULTS,
    FakeClock,
    FakeKafka,
    FakePool,
    FakeRollout,
    FakeSink,
    FakeSource,
)
from world import Figures, make_loop

from worker.batch import Batch, Partition
from worker.loop.caution import Note

SLOW, QUICK = Partition("slow", 0), Partition("quick", 0)


class Two:
    """A slow pipeline, whose batches come back when the test says so, and a quick one."""

    def __init__(self, limit_bytes: int = 1_000_000, slab_records: int = 4, **both: object) -> None:
        self.kafka = FakeKafka(FakeClock(), {"slow": 1, "quick": 1}, {RESULTS: 1})
        self.source = FakeSource(self.kafka)
        self.sink = FakeSink(self.kafka)
        self.pool = FakePool(self.kafka.clock)
        world = make_loop(
            self.kafka.clock,
            self.source,
            self.sink,
            self.pool,
            [
                FakeRollout(name, frozenset({name}), slab_records=slab_records, **both)  # type: ignore[arg-type]
                for name in ("slow", "quick")
            ],
            Figures(limit_bytes=limit_bytes),
        )
        self.conductor, self.budget, self.meters = world.conductor, world.budget, world.meters
        self.source.subscribe(self.conductor.membership)
        self.kafka.rebalance()

    def feed(self, partition: Partition, *values: bytes) -> None:
        for value in values:
            self.kafka.append(partition, value)

    def turn(self, times: int = 1, also_slow: bool = False) -> None:
        """Turn; what the quick pipeline has in the pool is finished after each."""
        for _ in range(times):
            self.conductor.turn()
            self.finish(lambda batch: also_slow or batch.route.name == "quick")

    def finish(self, which: Callable[[Batch], bool]) -> None:
        done = [batch for batch in self.pool.held if which(batch)]
        if done:
            self.pool.finish(*done)

    def answered(self, partition: Partition) -> int:
        return sum(message.source == partition for message in self.kafka.outputs(RESULTS))


def test_a_pipeline_that_is_stuck_does_not_hold_up_another_one() -> None:
    """While no batch of one comes back, every record of the other is answered and committed. Only the topic of the
    stuck one is paused."""
    two = Two()
    two.feed(SLOW, *[b"x"] * 500)
    two.feed(QUICK, *[b"x"] * 300)
    two.turn(600)
    assert two.answered(QUICK) == two.kafka.committed[QUICK] == 300
    assert two.answered(SLOW) == 0
    assert two.source.paused == {"slow"}
    assert two.conductor.paused == {"slow"}
    two.turn(2_000, also_slow=True)
    assert two.answered(SLOW) == two.kafka.committed[SLOW] == 500
    assert not two.source.paused


def test_a_pause_comes_once_for_many_slabs() -> None:
    """A pipeline slower than its topic is paused rarely: every pause throws away what the client has fetched."""
    two = Two()
    pauses = 0
    pause = two.source.pause

    def counting(topics: object) -> None:
        nonlocal pauses
        pauses += 1
        pause(topics)  # type: ignore[arg-type]

    two.source.pause = counting  # type: ignore[method-assign]
    two.feed(SLOW, *[b"x"] * 2_000)
    for _ in range(2_000):
        two.feed(QUICK, b"x")
        two.turn()
        slow = [batch for batch in two.pool.held if batch.route.name == "slow"]
        if len(slow) == two.pool.capacity:
            two.pool.finish(slow[0])
    slabs = two.meters.batches - two.answered(QUICK)
    assert two.answered(SLOW) > 500
    assert 0 < pauses < slabs / 5


def test_a_slow_pipeline_leaves_another_one_its_part_of_the_budget() -> None:
    """Payloads of the one that is stuck fill their share and no more; the other one goes on with the rest."""
    two = Two(limit_bytes=40_000, slab_records=64)
    two.feed(SLOW, *[b"x" * 2_000] * 50)
    two.turn(100)
    assert two.source.paused == {"slow"}
    assert two.budget.held <= 40_000
    two.feed(QUICK, *[b"x" * 2_000] * 50)
    two.turn(300)
    assert two.answered(QUICK) == two.kafka.committed[QUICK] == 50
    assert two.answered(SLOW) == 0


def test_a_record_beyond_the_guaranteed_part_is_not_put_off_for_ever() -> None:
    """The other pipeline, however busy, holds back until the large record has gone."""
    two = Two(limit_bytes=40_000, costly=True, scratch=lambda value: 10 * len(value))
    two.feed(QUICK, *[b"x" * 1_000] * 100)
    two.turn(20)
    two.feed(SLOW, b"x" * 3_000)  # it needs 33,000 bytes; 10,000 are guaranteed
    before = two.answered(QUICK)
    two.turn(400, also_slow=True)
    assert two.answered(SLOW) == 1
    assert two.answered(QUICK) == 100 > before
    assert two.budget.held == 0


def test_a_record_that_must_be_alone_is_alone_in_the_whole_process() -> None:
    """A pipeline with records under caution gets its turn beside a busy one, and nothing runs beside such a record."""
    two = Two()
    two.kafka.notes[SLOW] = str(Note(attempts=1, until=3))
    two.feed(QUICK, *[b"x"] * 200)
    two.feed(SLOW, *[b"x"] * 5)
    beside = []
    for _ in range(600):
        two.conductor.turn()
        held = two.pool.held
        careful = [batch for batch in held if batch.route.name == "slow" and batch.columns.offsets[0] < 3]
        beside += [len(held)] if careful else []
        two.finish(lambda batch: True)
    assert beside
    assert set(beside) == {1}
    assert two.answered(SLOW) == 5
    assert two.answered(QUICK) == 200
    assert two.kafka.outputs(DEAD_LETTERS) == []


@pytest.mark.parametrize("stuck", [False, True])
def test_each_pipeline_keeps_its_own_batches(stuck: bool) -> None:
    """A slab of one topic never holds records of the other one's."""
    two = Two()
    for _ in range(20):
        two.feed(SLOW, b"x", b"x")
        two.feed(QUICK, b"x")
        two.conductor.turn()
        for batch in two.pool.held:
            assert {partition.topic for partition in batch.columns.partitions} == {batch.route.name}
        two.finish(lambda batch: not stuck or batch.route.name == "quick")
    assert two.meters.batches > 0
