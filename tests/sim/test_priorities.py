"""Priorities between intakes: pipelines on topics of their own that always have records, time by hand.

The loop is the real one. The pool runs one batch after the other, as one without threads does. The judge is shown to fail
where the counting of turns is planted wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from random import Random
from typing import Any
from unittest import mock

import pytest
from fakes import RESULTS, FakeClock, FakeKafka, FakePool, FakeRollout, FakeSink, FakeSource
from world import Figures, make_loop

from worker.batch import Batch, Partition
from worker.loop import intakes
from worker.loop.turns import TURNS, Turns

SLABS = 400
"""Slabs of all pipelines together in one run."""


class Pool(FakePool):
    """Every batch is done when it is submitted, after a time that the pipelines share."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.serial = True
        self.went: list[str] = []
        """The pipeline of each slab."""

    def submit(self, batch: Batch) -> None:
        super().submit(batch)
        self.went.append(batch.route.name)
        self.clock.advance(0.001)
        self.finish()


class Source(FakeSource):
    """Every take has records of every topic that is fetched, in any order, as a client has them that fetches from all."""

    def _some(self, most: int) -> int:
        return max(1, most // 3)


class Starved(AssertionError):
    """A pipeline waited for longer than it may, or a more important one was not preferred."""


def judge(went: Sequence[str], priorities: dict[str, int]) -> None:
    """Look at who had the slabs, in their order, where everybody always had records.

    Raises:
        Starved: see the class.
    """
    first = max(priorities, key=priorities.__getitem__)
    others = len(priorities) - 1
    for name in priorities:
        places = [-1, *(place for place, who in enumerate(went) if who == name), len(went)]
        longest = max(after - before for before, after in pairwise(places))
        if longest > TURNS + others + 10:  # the first slabs go before there is a backlog of every pipeline
            raise Starved(f"{name} waited for {longest} slabs of others")
    share = Counter(went)[first] / len(went)
    if share < 1 - others / TURNS - 0.1:
        raise Starved(f"{first} had {share:.0%} of the slabs")


def play(seed: int) -> None:
    """One run: two or three pipelines of unlike priority, whose topics are never empty."""
    rng = Random(seed)
    names = ["a", "b", "c"][: rng.randint(2, 3)]
    priorities = dict(zip(names, rng.sample(range(10), len(names)), strict=True))
    kafka = FakeKafka(FakeClock(), dict.fromkeys(names, 1), {RESULTS: 1})
    source, sink, pool = (
        Source(kafka, rng=rng),
        FakeSink(kafka, capacity=1_000),
        Pool(kafka.clock),
    )
    rollouts = [
        FakeRollout(name, frozenset({name}), max_size=16, slab_records=16, priority=priority)
        for name, priority in priorities.items()
    ]
    conductor = make_loop(
        kafka.clock, source, sink, pool, rollouts, Figures(limit_bytes=20_000_000)
    ).conductor
    source.subscribe(conductor.membership)
    kafka.rebalance()
    while len(source.assignment()) < len(names):
        conductor.turn()
    while len(pool.went) < SLABS:
        for name in names:
            log = Partition(name, 0)
            while kafka.end(log) - source.position(log) < 40:
                kafka.append(log, b"good")
        conductor.turn()
    judge(pool.went, priorities)


def test_the_most_important_pipeline_goes_first_and_none_waits_for_ever() -> None:
    """With a backlog everywhere each pipeline has one slab of about twenty, and the most important one the others."""
    for seed in range(8):
        play(seed)


def by_priority_alone(self: Turns[Any], candidates: Collection[Any]) -> list[Any]:
    """A less important one never comes first."""
    return sorted(candidates, key=lambda each: -self._priority(each))


@pytest.mark.parametrize(
    ("owner", "wrong"),
    [
        (Turns, {"order": by_priority_alone, "come": lambda self, candidate: False}),
        (Turns, {"went": lambda self, candidate, waiting: None}),
        (intakes, {"ranked": lambda priorities: False}),
    ],
    ids=["strict", "nobody counts", "no priorities"],
)
def test_a_starved_pipeline_is_noticed(owner: Any, wrong: dict[str, Callable[..., Any]]) -> None:
    """Each planted bug is noticed in the first run."""
    with mock.patch.multiple(owner, **wrong), pytest.raises(Starved):
        play(seed=0)
