"""A partition whose records are not answered is noticed, whatever else the worker does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker.batch import Partition
from worker.process.progress import PartitionView, Progress, Reading

A, B = Partition("in", 0), Partition("in", 1)
STALL_S = 60.0


class World:
    """Partitions by hand, time by hand; every second one look."""

    def __init__(self, *partitions: Partition) -> None:
        self.now = 0.0
        self.brokers = True
        self.views = {partition: PartitionView(5, 5) for partition in partitions}
        self.progress = Progress(STALL_S, lambda: Reading(dict(self.views), self.brokers), lambda: self.now)

    def set(self, partition: Partition, **changes: object) -> None:
        self.views[partition] = replace(self.views[partition], **changes)

    def grow(self, partition: Partition) -> None:
        view = self.views[partition]
        self.set(partition, end=(view.end or 0) + 1)

    def answer(self, partition: Partition) -> None:
        view = self.views[partition]
        self.set(partition, position=(view.position or 0) + 1)

    def stuck_within(self, seconds: float, *busy: Partition) -> str | None:
        """What gets stuck while every partition's input grows and ``busy`` ones are answered."""
        for _ in range(int(seconds)):
            self.now += 1.0
            for partition in self.views:
                self.grow(partition)
            for partition in busy:
                self.answer(partition)
            if (why := self.progress.stuck()) is not None:
                return why
        return None


def test_a_partition_that_is_read_and_not_acknowledged_stands() -> None:
    """Dead output: records are taken until the window is full. Reading them and being full are no progress."""
    world = World(A)
    world.set(A, in_flight="slab 1: 3 outputs open", waits="for 3 outputs to be acknowledged")
    for read in range(10):  # the window fills: the oldest slab stays what it was
        world.set(A, paused=read > 5)
        assert world.stuck_within(6) is None
    assert "in/0 has stood at 5" in (world.stuck_within(10) or "")
    assert "it waits for 3 outputs to be acknowledged" in (world.progress.standing() or "")


def test_back_pressure_excuses_nobody_when_the_process_stands() -> None:
    """A paused partition of which nothing is in flight waits for its turn only while something moves."""
    world = World(A)
    world.set(A, paused=True)
    assert "in/0" in (world.stuck_within(STALL_S + 10) or "")


def test_a_busy_partition_does_not_hide_one_that_stands() -> None:
    """A stands for 66 s beside a busy B: it is A that is reported, within stall_s and the grace."""
    world = World(A, B)
    world.set(A, in_flight="slab 1")
    why = world.stuck_within(600, B)
    assert "in/0 has stood at 5" in (why or "")
    assert world.now == pytest.approx(STALL_S + Progress.GRACE_S, abs=3)


def test_a_partition_that_is_not_fetched_stands_beside_a_busy_one() -> None:
    """Nothing of A arrives although nobody paused it."""
    world = World(A, B)
    assert "in/0 has stood at 5" in (world.stuck_within(600, B) or "")


def test_custom_code_that_hangs_is_seen_before_the_batch_time_out() -> None:
    """A batch of A runs and does not come back; B goes on through other threads."""
    world = World(A, B)
    world.set(A, in_flight="slab 1: 1 batch open", waits="for 1 batch of the model")
    assert "for 1 batch of the model" in (world.stuck_within(70, B) or "")


def test_whatever_moves_of_a_partition_is_progress() -> None:
    """A batch that returns and an output that is acknowledged count, before the position moves."""
    world = World(A)
    for step in range(40):
        world.set(A, in_flight=("slab 1", step))
        assert world.stuck_within(50) is None


def test_a_partition_waits_for_its_turn_while_others_are_served() -> None:
    """Overload: A is paused and unread, or queued for the pool, while B moves. When B stops, both stand."""
    for waiting in ({"paused": True}, {"in_flight": "slab 9", "queued": True}):
        world = World(A, B)
        world.set(A, **waiting)
        assert world.stuck_within(600, B) is None
        assert world.stuck_within(STALL_S + 10) is not None


def test_an_outage_is_no_standstill() -> None:
    """While no broker can be reached nothing stands, and afterwards the time starts anew."""
    world = World(A)
    world.brokers = False
    assert world.stuck_within(600) is None
    world.brokers = True
    assert world.stuck_within(STALL_S - 5) is None
    assert world.stuck_within(15) is not None


def test_a_store_that_is_away_is_no_standstill() -> None:
    """However long: the partition that waits for it is excused, and no other one; once it is back, everybody has his time."""
    world = World(A, B)
    world.set(A, away=True, waits="for the store s3://frames, away since 12:00")
    assert world.stuck_within(10 * STALL_S, B) is None
    assert "in/1" in (world.stuck_within(STALL_S + 10) or "")
    world = World(A)
    world.set(A, away=True)
    assert world.stuck_within(10 * STALL_S) is None
    world.set(A, away=False)
    assert world.stuck_within(STALL_S - 1) is None
    assert "in/0" in (world.stuck_within(10) or "")


def test_nothing_new_is_no_standstill() -> None:
    """Behind, but the end does not move: an idle upstream, or records of an open transaction."""
    world = World(A)
    world.set(A, end=9)
    for world.now in range(0, 1000, 10):
        assert world.progress.stuck() is None
        assert world.progress.standing() is None


def test_it_is_told_before_it_is_the_end() -> None:
    """Between stall_s and the grace `standing` says what stands, and `stuck` does not yet."""
    world = World(A)
    world.set(A, in_flight="slab 1")
    assert world.stuck_within(STALL_S + 3) is None
    assert "in/0 has stood" in (world.progress.standing() or "")
    world.answer(A)
    assert world.stuck_within(1) is None
    assert world.progress.standing() is None


def test_a_partition_that_comes_back_starts_anew() -> None:
    """Revoked and assigned again: the time before does not count."""
    world = World(A)
    world.set(A, in_flight="slab 1")
    assert world.stuck_within(STALL_S) is None
    view = world.views.pop(A)
    assert world.stuck_within(1) is None
    world.views[A] = view
    assert world.stuck_within(STALL_S - 1) is None


def test_a_partition_that_is_held_back_on_purpose_does_not_stand() -> None:
    """However long that is said of it; afterwards it has the usual time."""
    world = World(A)
    world.set(A, held=True, waits="for a model of a rollout")
    assert world.stuck_within(300) is None
    world.set(A, held=False)
    assert world.stuck_within(STALL_S) is None
    assert "it waits for a model of a rollout" in (world.stuck_within(60) or "")
