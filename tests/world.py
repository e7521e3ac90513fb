"""One replica of the real loop, put together: the only place in the tests that calls its constructors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fakes import DEAD_LETTERS, FakeClock, FakeMeters, FakePool, FakeRollout, FakeSink, FakeSource, NullLog

from worker.loop.admission import Admission
from worker.loop.at_least_once import AtLeastOnce
from worker.loop.caution import Caution
from worker.loop.conductor import Conductor, Plan
from worker.loop.delivery import Delivery
from worker.loop.limit import DeadLetterRate
from worker.loop.outbox import Letterhead, Outbox
from worker.loop.window import Window

COMMIT_INTERVAL_S = 0.02


@dataclass(frozen=True, slots=True)
class Figures:
    """The settings of one replica; every default is a calm one."""

    name: str = "worker"
    slab_records: int = 4
    max_wait_s: float = 0.005
    limit_bytes: int = 1_000_000
    drain_s: float = 1.0
    revoke_s: float = 0.5
    ordered: bool = True
    expired: str = "drop"
    ratio: float = 2.0
    """Share of dead letters at which the process stops; above 1 it never does."""
    max_crashes: int = 3


@dataclass(frozen=True, slots=True)
class World:
    """A replica of the loop with everything it was made of."""

    conductor: Conductor
    window: Window
    outbox: Outbox
    source: FakeSource
    sink: FakeSink
    pool: FakePool
    meters: FakeMeters
    log: NullLog


def make_loop(
    clock: FakeClock,
    source: FakeSource,
    sink: FakeSink,
    pool: FakePool,
    rollouts: Sequence[FakeRollout],
    figures: Figures,
    make_delivery: Callable[[Caution], Delivery] | None = None,
    cpu_ns: Callable[[], int] = lambda: 0,
) -> World:
    """A loop over these fakes, not subscribed yet.

    Args:
        make_delivery: gives the delivery guarantee; at least once with a short commit interval unless given.
        cpu_ns: the CPU clock of the process, read once per slab.
    """
    window, meters, log = Window(figures.limit_bytes), FakeMeters(), NullLog()
    caution = Caution(2 * figures.slab_records, figures.max_crashes)
    outbox = Outbox(
        sink, Letterhead(DEAD_LETTERS, "client", figures.name), DeadLetterRate(figures.ratio, 1_000)
    )
    if make_delivery is None:
        delivery: Any = AtLeastOnce(source, sink, COMMIT_INTERVAL_S, clock, caution.metadata)
    else:
        delivery = make_delivery(caution)
    conductor = Conductor(
        Plan(
            figures.name,
            figures.slab_records,
            figures.max_wait_s,
            figures.drain_s,
            figures.revoke_s,
            record_nbytes=max(rollout.stable.item_nbytes for rollout in rollouts),
            ordered=figures.ordered,
        ),
        source,
        pool,
        window,
        Admission(rollouts, None, figures.expired, figures.limit_bytes),
        outbox,
        sink,
        delivery,
        meters,
        log,
        caution,
        clock,
        clock.wall_ms,
        sleep=clock.advance,
        cpu_ns=cpu_ns,
    )
    return World(conductor, window, outbox, source, sink, pool, meters, log)
