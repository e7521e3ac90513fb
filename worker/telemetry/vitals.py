"""What the HTTP server, the watchdog and the metrics reports ask of a running worker.

The loop's thread refreshes what needs the Kafka client (:meth:`Vitals.look`, :meth:`Vitals.take_snapshot`).
Other threads read plain attributes of the loop, which are replaced whole and never changed in place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from worker.batch import Partition
from worker.telemetry.exchange import SnapshotExchange
from worker.telemetry.http import Health
from worker.telemetry.meters import Meters, PartitionState, Snapshot

if TYPE_CHECKING:
    from worker.kafka.ends import Reach
    from worker.loop.budget import Budget
    from worker.loop.window import Window

LOOK_EVERY_S = 1.0
"""How often the ends of the partitions are looked up."""


class Loop(Protocol):
    """What vitals read of the conductor."""

    window: Window
    budget: Budget
    turned_ns: int
    """Monotonic nanoseconds of the end of the last turn."""
    stop_requested: bool

    @property
    def paused(self) -> frozenset[str]:
        """Topics that are not fetched because their intake is full."""

    @property
    def joined(self) -> bool: ...

    @property
    def draining(self) -> bool: ...


class Source(Protocol):
    """What vitals read of the consumer."""

    @property
    def fatal(self) -> str | None: ...

    def lag(self) -> dict[Partition, Reach]: ...


class Pool(Protocol):
    """What vitals read of the pool."""

    outstanding: int


class Vitals:
    """One worker's state of health. Until `attach` it is warming up: alive and not ready.

    Args:
        stall_s: a loop whose last turn is older counts as dead (``limits.stall_s``).
        clock_ns: monotonic nanoseconds, the conductor's clock.
    """

    def __init__(
        self, meters: Meters, stall_s: float, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._meters = meters
        self._stall_s = stall_s
        self._clock_ns = clock_ns
        self._parts: tuple[Loop, Source, Pool] | None = None
        self._standing: Callable[[], str | None] = lambda: None
        self._reach: Mapping[Partition, Reach] = {}
        self.exchange = SnapshotExchange(meters.snapshot())

    def attach(self, loop: Loop, source: Source, pool: Pool) -> None:
        """The worker is built: from here on these answer."""
        self._parts = (loop, source, pool)

    def watch(self, standing: Callable[[], str | None]) -> None:
        """``standing`` says which partition does not progress; None while all do."""
        self._standing = standing

    # -- for any thread ------------------------------------------------------------------------------------

    def health(self) -> Health:
        """See :class:`worker.telemetry.http.Provider`."""
        if self._parts is None:
            return Health(alive=True, ready=False, progressing=True, detail={"reason": "warming up"})
        loop, source, _ = self._parts
        alive = self._idle_s(loop) < self._stall_s and source.fatal is None
        # a loop that is busy with a batch has not begun to drain when it is asked to
        draining = loop.draining or loop.stop_requested
        detail = {"turned_s_ago": round(self._idle_s(loop), 3), "draining": draining}
        return Health(
            alive, alive and loop.joined and not draining, alive and self._standing() is None, detail
        )

    def snapshot(self) -> Snapshot:
        """See :class:`worker.telemetry.http.Provider`."""
        return self._meters.snapshot() if self._parts is None else self.exchange.ask()

    def state(self) -> dict[str, Any]:
        """What a stuck process knows of itself, read without its help."""
        if self._parts is None:
            return {"phase": "warming up"}
        loop, _, pool = self._parts
        return {
            "turned_s_ago": round(self._idle_s(loop), 1),
            "paused": sorted(loop.paused),
            "draining": loop.draining,
            "slabs_in_flight": loop.window.slabs,
            "bytes_in_flight": loop.budget.held,
            "records_in_flight": loop.window.records,
            "batches_in_pool": pool.outstanding,
            "partitions": {f"{p.topic}/{p.number}": reach[:2] for p, reach in self._reach.items()},
        }

    def progress(self) -> tuple[Mapping[Partition, tuple[int | None, int | None]], int, bool]:
        """What :class:`worker.process.watchdog.Progress` reads."""
        assert self._parts is not None, "the watchdog starts with the worker"
        seen = {p: (reach.position + reach.unreadable, reach.end) for p, reach in self._reach.items()}
        return seen, self._meters.counted_records, bool(self._parts[0].paused)

    def _idle_s(self, loop: Loop) -> float:
        return (self._clock_ns() - loop.turned_ns) / 1e9

    # -- for the loop's thread -----------------------------------------------------------------------------

    def look(self) -> None:
        """Refresh how far each partition was read and how far it goes."""
        if self._parts is not None:
            self._reach = self._parts[1].lag()

    def take_snapshot(self) -> Snapshot:
        """A consistent snapshot of now, made between two turns of the loop."""
        if self._parts is None:
            return self._meters.snapshot()
        loop, source, _ = self._parts
        window = loop.window
        partitions = {}
        # the last report of a drain is made after the source is closed: it shows the last look
        for partition, reach in (source.lag() or self._reach).items():
            position = window.position(partition)
            if position is None:
                position = reach.start  # nothing is acknowledged yet
            partitions[partition] = PartitionState(
                position,
                window.committed_position(partition),
                reach.end if reach.end >= 0 else None,
                reach.unreadable if position == reach.position else 0,
                reach.age_s,
            )
        return self._meters.snapshot(loop.budget.held, partitions)

    def answer(self) -> None:
        """Give a snapshot to the threads that wait for one."""
        if self.exchange.wanted:
            self.exchange.answer(self.take_snapshot())
