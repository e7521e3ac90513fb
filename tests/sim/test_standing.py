"""The watchdog beside the loop: a partition that stands is told apart from one that waits its turn.

One replica of the real loop over a fake Kafka, time by hand, records all the while. The watchdog looks as it does in
a worker (:mod:`worker.process.progress`); what it looks through is right, or planted wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from fakes import RESULTS, FakeClock, FakeKafka, FakePool, FakeRollout, FakeSink, FakeSource
from world import Figures, make_loop

from worker.batch import Batch, Partition
from worker.loop.pool import Returned
from worker.process import progress
from worker.process.progress import PartitionView, Progress, Reading

STALL_S = 1.0
NOTICED_S = STALL_S + Progress.GRACE_S + 1.0
"""From the fault to the sentence, the looks' own interval included."""
LOOK_S = 0.25
PRODUCE_S = 0.02
QUICK = {Partition("quick", 0), Partition("quick", 1)}
SLOW = {Partition("slow", 0)}
Views = Callable[..., dict[Partition, PartitionView]]


class Pool(FakePool):
    """Batches take random times by the clock; those of a hanging lane never come back."""

    def __init__(self, clock: FakeClock, rng: Random, slowest_s: Mapping[str, float]) -> None:
        super().__init__(clock, capacity=rng.randint(1, 3))
        self.hanging: str | None = None
        self._rng = rng
        self._slowest_s = slowest_s
        self._ready_ns: dict[int, int] = {}

    def oldest(self) -> Batch | None:
        return self.held[0] if self.held else None

    def submit(self, batch: Batch) -> None:
        super().submit(batch)
        took_s = self._rng.uniform(0.1, 1.0) * self._slowest_s[batch.route.name]
        self._ready_ns[id(batch)] = self.clock() + int(took_s * 1e9)

    def collect(self, timeout_s: float = 0.0) -> list[Returned]:
        for batch in self.held[:]:
            if batch.route.name != self.hanging and self._ready_ns[id(batch)] <= self.clock():
                self.finish(batch)
        return super().collect(timeout_s)


class Run:
    """A quick pipeline of two partitions and a slow one, with more records than the slow one can answer."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.kafka = FakeKafka(FakeClock(), {"quick": 2, "slow": 1}, {RESULTS: 2})
        self.clock = self.kafka.clock
        self.source, self.sink = FakeSource(self.kafka), FakeSink(self.kafka, capacity=200)
        self.pool = Pool(self.clock, rng, {"quick": 0.002, "slow": 0.3})
        rollouts = [
            FakeRollout("quick", frozenset({"quick"}), slab_records=8, output_partition="input"),
            FakeRollout("slow", frozenset({"slow"}), slab_records=2, output_partition="input"),
        ]
        world = make_loop(
            self.clock, self.source, self.sink, self.pool, rollouts, Figures(limit_bytes=200_000)
        )
        self.conductor, self.window = world.conductor, world.window
        self.source.subscribe(self.conductor.membership)
        self.kafka.rebalance()
        self.watch = Progress(STALL_S, self.read, lambda: self.clock() / 1e9)

    def read(self) -> Reading:
        reach = {
            partition: SimpleNamespace(
                position=self.source.position(partition),
                end=self.kafka.end(partition),
                unreadable=0,
                start=0,
            )
            for partition in self.source.assignment()
        }
        return Reading(progress.views(self.window, self.pool.oldest(), reach, self.conductor.paused))

    def until_stuck(self, seconds: float) -> str | None:
        """Turn for so long by the clock, with records for every partition; the first thing the watchdog says."""
        end_ns = self.clock() + int(seconds * 1e9)
        look_ns = produce_ns = self.clock()
        while self.clock() < end_ns:
            if self.clock() >= produce_ns:
                for partition in self.kafka.logs:
                    self.kafka.append(partition, b"x")
                produce_ns += int(PRODUCE_S * 1e9)
            self.conductor.turn()
            self.clock.advance(0.0005)
            if self.clock() >= look_ns:
                look_ns += int(LOOK_S * 1e9)
                if (why := self.watch.stuck()) is not None:
                    return why
        return None


def dead_sink(run: Run) -> set[Partition]:
    """No output is acknowledged any more."""
    run.sink.stalled = True
    return QUICK | SLOW


def dead_partition(run: Run) -> set[Partition]:
    """One output partition has no leader; the outputs of two inputs go there."""
    run.sink.dead.add((RESULTS, 0))
    return {Partition("quick", 0), Partition("slow", 0)}


def hanging_step(run: Run) -> set[Partition]:
    """A run of the slow pipeline never ends."""
    run.pool.hanging = "slow"
    return SLOW


FAULTS = (dead_sink, dead_partition, hanging_step)


def noticed(fault: Callable[[Run], set[Partition]], seed: int) -> bool:
    """Whether the watchdog names a partition that stands, in time after the fault."""
    run = Run(seed)
    assert run.until_stuck(1.0) is None
    standing = fault(run)
    why = run.until_stuck(NOTICED_S) or ""
    return any(why.startswith(f"{partition.topic}/{partition.number} ") for partition in standing)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_partition_that_stands_is_named_in_time(fault: Callable[[Run], set[Partition]], seed: int) -> None:
    """A dead sink, a dead output partition and a step that hangs are each noticed, at a partition that stands for it."""
    assert noticed(fault, seed)


@pytest.mark.parametrize("seed", range(3))
def test_a_partition_that_only_waits_its_turn_is_not_named(seed: int) -> None:
    """A pipeline slower than its topic is paused again and again and its lag grows; it is answered all the same."""
    run = Run(seed)
    assert run.until_stuck(3 * NOTICED_S) is None
    assert run.conductor.paused
    assert 0 < (run.window.position(Partition("slow", 0)) or 0) < run.kafka.end(Partition("slow", 0)) / 2


_views = progress.views


def position_read_counts(window: Any, oldest: Any, reach: Mapping[Partition, Any], paused: Any) -> Any:
    """Reading a record is taken for progress, and so is a full window."""
    found = _views(window, oldest, reach, paused)
    return {p: replace(view, position=reach[p].position, in_flight=None) for p, view in found.items()}


def back_pressure_counts(window: Any, oldest: Any, reach: Any, paused: Any) -> Any:
    """Whoever is paused, or has all he may hold in flight, has an excuse for ever."""
    found = _views(window, oldest, reach, paused)
    full = bool(paused)
    return {p: replace(view, end=view.position) if full else view for p, view in found.items()}


def one_number_for_the_process(window: Any, oldest: Any, reach: Any, paused: Any) -> Any:
    """Whatever is answered anywhere counts as progress of every partition."""
    found = _views(window, oldest, reach, paused)
    total = sum(view.position or 0 for view in found.values())
    return {p: replace(view, in_flight=total) for p, view in found.items()}


@pytest.mark.parametrize("wrong", [position_read_counts, back_pressure_counts, one_number_for_the_process])
def test_a_watchdog_that_looks_at_the_wrong_thing_is_caught(wrong: Views) -> None:
    """Each of the three ways in which such a watchdog has been blind leaves at least one fault unnoticed."""
    with mock.patch.object(progress, "views", wrong):
        assert not all(noticed(fault, seed=0) for fault in FAULTS)
