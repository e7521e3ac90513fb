"""One replica of the real loop, put together: the only place in the tests that calls its constructors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fakes import DEAD_LETTERS, FakeClock, FakeMeters, FakePool, FakeRollout, FakeSink, FakeSource, NullLog

from worker.loop.accounts import Accounts
from worker.loop.admission import Admission
from worker.loop.at_least_once import AtLeastOnce
from worker.loop.budget import Budget, Share
from worker.loop.caution import Caution
from worker.loop.conductor import Conductor
from worker.loop.delivery import Delivery
from worker.loop.fetching import Fetching
from worker.loop.intake import Intake
from worker.loop.intakes import Intakes, groups
from worker.loop.io_threads import Calls
from worker.loop.isolation import Isolation
from worker.loop.limit import DeadLetterRate
from worker.loop.membership import Parts
from worker.loop.outbox import Letterhead, Outbox
from worker.loop.pool import InlinePool
from worker.loop.tracing import Tracer
from worker.loop.window import Window
from worker.outside import Outside

COMMIT_INTERVAL_S = 0.02


@dataclass(frozen=True, slots=True)
class Figures:
    """The settings of one replica; every default is a calm one."""

    name: str = "worker"
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
    budget: Budget
    intakes: list[Intake]
    outbox: Outbox
    source: FakeSource
    sink: FakeSink
    pool: FakePool | InlinePool
    meters: FakeMeters
    log: NullLog


def make_loop(
    clock: FakeClock,
    source: FakeSource,
    sink: FakeSink,
    pool: FakePool | InlinePool,
    rollouts: Sequence[FakeRollout],
    figures: Figures,
    make_delivery: Callable[[Caution], Delivery] | None = None,
    cpu_ns: Callable[[], int] = lambda: 0,
    outside: tuple[Outside, Callable[[], Calls]] | None = None,
    tracer: Tracer | None = None,
) -> World:
    """A loop over these fakes, not subscribed yet.

    Args:
        make_delivery: gives the delivery guarantee; at least once with a short commit interval unless given.
        cpu_ns: the CPU clock of the process, read once per slab.
        outside: what the records of every route need from outside, and who makes the calls.
        tracer: told of records that leave.
    """
    meters, log, window = FakeMeters(), NullLog(), Window()
    parted = groups(rollouts)
    budget = Budget(figures.limit_bytes, len(parted))
    intakes = [
        Intake(
            Admission(group, None, figures.expired, figures.limit_bytes),
            share,
            alone=len(parted) == 1,
            clock_ns=clock,
            cpu_ns=cpu_ns,
            fetching=_fetching(group, share, outside, log, clock),
        )
        for group, share in zip(parted, budget.shares, strict=True)
    ]
    reach = {topic: 2 * intake.slab_records for intake in intakes for topic in intake.topics}
    caution = Caution(reach, figures.max_crashes)
    outbox = Outbox(
        sink, Letterhead(DEAD_LETTERS, "client", figures.name), DeadLetterRate(figures.ratio, 1_000), tracer
    )
    if make_delivery is None:
        delivery: Delivery = AtLeastOnce(source, sink, COMMIT_INTERVAL_S, clock, caution.metadata)
    else:
        delivery = make_delivery(caution)
    isolation, accounts = Isolation(caution, source, window), Accounts([meters], figures.name, clock, tracer)
    parts = Parts(
        source,
        Intakes(intakes, source),
        budget,
        window,
        outbox,
        sink,
        delivery,
        isolation,
        accounts,
        log,
        clock,
    )
    conductor = Conductor(
        parts,
        pool,
        figures.drain_s,
        figures.revoke_s,
        figures.ordered,
        clock.wall_ms,
        clock.advance,
    )
    return World(conductor, window, budget, intakes, outbox, source, sink, pool, meters, log)


def _fetching(
    group: Sequence[FakeRollout],
    share: Share,
    outside: tuple[Outside, Callable[[], Calls]] | None,
    log: NullLog,
    clock: FakeClock,
) -> Fetching | None:
    if outside is None:
        return None
    needed = {rollout.route: (outside[0],) for rollout in group}
    return Fetching(needed, outside[1](), share, log, clock, clock.wall_ms)
