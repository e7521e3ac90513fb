"""What the worker says about its own health, and when."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from worker.batch import Partition
from worker.kafka.ends import Reach
from worker.loop.awaited import Waits
from worker.process.progress import PartitionView
from worker.telemetry.meters import Meters
from worker.telemetry.vitals import UNREADY_AFTER_S, Vitals

P = Partition("in", 0)


class Stage:
    """A worker that is in its group, turns and has one partition; a test changes what it likes."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slab: Any = None
        window = SimpleNamespace(
            position=lambda partition: 5,
            committed_position=lambda partition: 5,
            oldest=lambda partition: self.slab,
            owned={P},
            slabs=0,
            records=0,
        )
        self.loop: Any = SimpleNamespace(
            window=window,
            budget=SimpleNamespace(held=7),
            turned_ns=int(self.now_s * 1e9),
            paused=frozenset(),
            waits=dict,
            joined=True,
            draining=False,
            stop_requested=False,
        )
        self.reach = Reach(8, 12, 0, 0, 0.0)
        self.source: Any = SimpleNamespace(fatal=None, brokers_up=2, lag=lambda: {P: self.reach})
        self.pool: Any = SimpleNamespace(outstanding=0, oldest=lambda: None)
        self.errors = [Counter({"_TRANSPORT": 2}), Counter({"_TRANSPORT": 1, "_ALL_BROKERS_DOWN": 1})]
        self.vitals = Vitals(Meters({}), 60.0, lambda: int(self.now_s * 1e9), lambda: 1_764_495_000.0)

    def attach(self) -> Stage:
        self.vitals.attach(self.loop, self.source, self.pool, lambda: self.errors)
        self.vitals.look()
        return self

    def passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.loop.turned_ns = int(self.now_s * 1e9)
        self.vitals.look()

    def ready(self) -> tuple[bool, str | None]:
        health = self.vitals.health()
        return health.ready, health.detail.get("reason")


def test_a_worker_that_warms_up_is_alive_and_says_so() -> None:
    """Probes are answered before the model is loaded: alive, not ready, with the reason."""
    health = Stage().vitals.health()
    assert (health.alive, health.ready, health.detail["reason"]) == (True, False, "warming up")


def test_a_worker_in_its_group_is_ready() -> None:
    """No reason is given when nothing is wrong."""
    assert Stage().attach().ready() == (True, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"draining": True}, "draining"),
        ({"stop_requested": True}, "draining"),
        ({"joined": False}, "partitions were lost and the group is not joined again"),
    ],
)
def test_an_unready_worker_says_why(change: dict[str, Any], reason: str) -> None:
    """503 with the reason: draining, or partitions lost and not joined again."""
    stage = Stage().attach()
    for name, value in change.items():
        setattr(stage.loop, name, value)
    assert stage.ready() == (False, reason)


def test_a_worker_that_never_joined_says_so() -> None:
    """Before the first assignment it is not ready, and nothing was lost."""
    stage = Stage()
    stage.loop.joined = False
    assert stage.attach().ready() == (False, "the group is not joined")


def test_without_brokers_it_is_ready_for_a_while_and_then_not() -> None:
    """An outage longer than 10 s makes the worker unready; the first broker that is back makes it ready again."""
    stage = Stage().attach()
    stage.source.brokers_up = 0
    stage.passes(1)
    stage.passes(UNREADY_AFTER_S - 1)
    assert stage.ready() == (True, None)
    assert stage.vitals.health().waits == "waiting for brokers since 2025-11-30T09:30:00Z"
    assert not stage.vitals.take_snapshot().kafka.available
    stage.passes(2)
    assert stage.ready() == (False, "brokers unreachable")
    assert stage.vitals.health().progressing, "waiting for brokers is no standstill"
    stage.loop.joined = False
    assert stage.ready() == (False, "brokers unreachable"), "the cause, not the partitions lost by it"
    stage.loop.joined = True
    stage.source.brokers_up = 1
    stage.passes(1)
    assert stage.ready() == (True, None)
    assert stage.vitals.health().waits is None


def test_the_snapshot_tells_of_brokers_and_partitions() -> None:
    """Assigned partitions, broker_available and the errors of all clients together."""
    kafka = Stage().attach().vitals.take_snapshot().kafka
    assert (kafka.available, kafka.assigned) == (True, 1)
    assert kafka.errors == {"_TRANSPORT": 3, "_ALL_BROKERS_DOWN": 1}


def test_a_lost_partition_has_no_lag() -> None:
    """Between the loss of a partition and the next look, no snapshot tells of it: its committed position is forgotten."""
    stage = Stage().attach()
    assert stage.vitals.take_snapshot().partitions[P].lag == 7
    stage.loop.window.owned.clear()
    stage.source.lag = dict
    assert stage.vitals.take_snapshot().partitions == {}


def test_progress_is_fed_with_what_is_acknowledged() -> None:
    """The position is the acknowledged one, not the one read; what is in flight leaves a mark that follows its outputs."""
    stage = Stage()
    stage.slab = SimpleNamespace(
        turn=SimpleNamespace(waiting_for=0, blocked_by=0),
        receipt=SimpleNamespace(taken=4, answered=1, unanswered=3),
    )
    stage.attach()
    view: PartitionView = stage.vitals.reading().partitions[P]
    assert (view.position, view.end, view.behind, view.queued) == (5, 12, True, False)
    assert view.waits == "for 3 outputs to be acknowledged"
    stage.passes(1)
    assert stage.vitals.reading().partitions[P].in_flight == view.in_flight
    stage.slab.receipt.answered = 2
    stage.passes(1)
    assert stage.vitals.reading().partitions[P].in_flight != view.in_flight


def test_a_batch_behind_others_is_queued_and_the_one_that_runs_is_not() -> None:
    """Only a slab none of whose batches is the oldest in work waits for its turn."""
    stage = Stage()
    stage.slab = SimpleNamespace(
        turn=SimpleNamespace(waiting_for=2, blocked_by=0),
        receipt=SimpleNamespace(taken=0, answered=0, unanswered=0),
    )
    other = SimpleNamespace(slab=object())
    for oldest, queued in ((None, True), (other, True), (SimpleNamespace(slab=stage.slab), False)):
        stage.pool.oldest = lambda oldest=oldest: oldest
        stage.attach()
        assert stage.vitals.reading().partitions[P].queued == queued


def test_a_store_that_is_away_is_told_and_no_standstill() -> None:
    """A partition that waits for a store says for which and since when; its mark moves with every try."""
    stage = Stage()
    stage.loop.waits = lambda: {P: Waits(("mark", 1), "for the store s3://frames, away since 12:00", True)}
    stage.attach()
    view: PartitionView = stage.vitals.reading().partitions[P]
    assert (view.away, view.in_flight) == (True, ("mark", 1))
    assert stage.vitals.waits_outside() == "waiting for the store s3://frames, away since 12:00"
    assert stage.vitals.health().waits == stage.vitals.waits_outside()
    assert stage.vitals.health().progressing


def test_offsets_without_records_are_not_waited_for() -> None:
    """Aborted records behind the last acknowledged one leave the partition with nothing to do."""
    stage = Stage()
    stage.reach = Reach(5, 7, 2, 0, 0.0)
    assert not stage.attach().vitals.reading().partitions[P].behind
