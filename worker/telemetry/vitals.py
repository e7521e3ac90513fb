"""The state of a running worker, as the HTTP server, the watchdog and the metrics reports need it.

The loop's thread refreshes the values that need the Kafka client (:meth:`Vitals.look`, :meth:`Vitals.take_snapshot`).
Other threads read plain attributes of the loop. The loop replaces these whole and never changes one in place.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from worker.batch import Batch, Partition
from worker.process.progress import Reading, views
from worker.telemetry.drain import DrainRates
from worker.telemetry.exchange import SnapshotExchange
from worker.telemetry.meters import KafkaState, Meters, PartitionState, Snapshot
from worker.telemetry.routes import Health
from worker.telemetry.story import Scene

if TYPE_CHECKING:
    from worker.kafka.ends import Reach
    from worker.loop.awaited import Waits
    from worker.loop.budget import Budget
    from worker.loop.window import Window

LOOK_EVERY_S = 1.0
"""How often the ends of the partitions are looked up."""
REGISTRY = "schema registry"
"""How the place begins that a registry has among those that records wait for."""
UNREADY_AFTER_S = 10.0
"""After this long without any broker the worker is not ready. The restart of one broker usually takes less."""


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

    def waits(self) -> Mapping[Partition, Waits]:
        """What partitions wait for outside; for the loop's thread."""

    @property
    def joined(self) -> bool: ...

    @property
    def draining(self) -> bool: ...


class Source(Protocol):
    """What vitals read of the consumer."""

    @property
    def fatal(self) -> str | None: ...

    @property
    def brokers_up(self) -> int:
        """Brokers that the client is connected to."""

    def lag(self) -> dict[Partition, Reach]: ...


class Pool(Protocol):
    """What vitals read of the pool."""

    @property
    def outstanding(self) -> int: ...

    def oldest(self) -> Batch | None:
        """The batch that has been worked on for longest."""


class Vitals:
    """The health of one worker. Until `attach` the worker is warming up: alive and not ready.

    Args:
        stall_s: if the loop's last turn is older than this, the worker is not alive (``limits.stall_s``).
        clock_ns: monotonic nanoseconds, the conductor's clock.
        wall_s: Unix seconds.
    """

    def __init__(
        self,
        meters: Meters,
        stall_s: float,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._meters = meters
        self.stall_s = stall_s
        self._clock_ns = clock_ns
        self._wall_s = wall_s
        self._parts: tuple[Loop, Source, Pool] | None = None
        self._errors: Callable[[], Iterable[Counter[str]]] = tuple
        self._standing: Callable[[], str | None] = lambda: None
        self._reach: Mapping[Partition, Reach] = {}
        self._reading = Reading({})
        self.throttled_s: Callable[[], float] = float
        """Set by whoever has the consumer: for how long a quota has held back its answers so far."""
        self.elsewhere_away: Callable[[], str] = str
        """Set by whoever watches other clusters: the setting that names one of which no broker answers, else empty."""
        self._away = ""
        self._brokerless: tuple[int, float] | None = None
        """When the last connection to a broker was lost: monotonic ns and Unix s; None while a broker is connected."""
        self._was_member = False
        self._rates = DrainRates()
        self._seen: Mapping[Partition, PartitionState] = {}
        """The partitions as of the last look."""
        self.last_error: Callable[[], str] = str
        """Returns what the last error of a Kafka client said."""
        self.exchange = SnapshotExchange(meters.snapshot())

    def attach(
        self, loop: Loop, source: Source, pool: Pool, errors: Callable[[], Iterable[Counter[str]]]
    ) -> None:
        """Set the parts of the worker that give the answers from now on, once they are built.

        Args:
            errors: returns the errors of each Kafka client so far, counted by the name of librdkafka's error code.
        """
        self._errors = errors
        self._parts = (loop, source, pool)

    def watch(self, standing: Callable[[], str | None]) -> None:
        """Set the function that names a partition without progress; it returns None while all progress."""
        self._standing = standing

    # -- for any thread ------------------------------------------------------------------------------------

    def health(self) -> Health:
        """See :class:`worker.telemetry.http.Provider`."""
        if self._parts is None:
            return Health(alive=True, ready=False, progressing=True, detail={"reason": "warming up"})
        loop, source, _ = self._parts
        idle_s = self._idle_s(loop)
        alive = idle_s < self.stall_s and source.fatal is None
        # a loop that is busy with a batch begins to drain some time after it is asked to
        draining = loop.draining or loop.stop_requested
        detail: dict[str, Any] = {"turned_s_ago": round(idle_s, 3), "draining": draining}
        if reason := self._unready(loop, source, alive, draining):
            detail["reason"] = reason
        standing = self._standing()
        why = standing or self.waits_for_brokers() or self.waits_outside()
        return Health(alive, reason is None, alive and standing is None, detail, why)

    def _unready(self, loop: Loop, source: Source, alive: bool, draining: bool) -> str | None:
        """Why this worker receives no records now; None if it does."""
        if source.fatal is not None:
            return f"the Kafka client cannot go on: {source.fatal}"
        if not alive:
            return "the loop does not turn"
        if draining:
            return "draining"
        if self.brokers_away() and self._brokerless_s() > UNREADY_AFTER_S:
            return "brokers unreachable"  # before what follows from it: the client gives its partitions up after a while
        if not loop.joined:
            if self._was_member:
                return "partitions were lost and the group is not joined again"
            return "the group is not joined"
        return None

    def brokers_away(self) -> bool:
        """Whether no broker can be reached, as of the last look."""
        return self._brokerless is not None

    def someone_away(self) -> bool:
        """Whether the brokers, or a schema registry that records wait for, cannot be reached, as of the last look."""
        views = self._reading.partitions.values()
        return self.brokers_away() or any(view.away and REGISTRY in view.waits for view in views)

    def _brokerless_s(self) -> float:
        return 0.0 if self._brokerless is None else (self._clock_ns() - self._brokerless[0]) / 1e9

    def waits_for_brokers(self) -> str | None:
        """A sentence while no broker can be reached."""
        if self._brokerless is None:
            return None
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._brokerless[1]))
        return f"waiting for brokers{' of ' * bool(self._away)}{self._away} since {since}"

    def waits_outside(self) -> str | None:
        """A sentence while a partition waits for someone outside who is away."""
        waits = next((view.waits for view in self._reading.partitions.values() if view.away), None)
        return f"waiting {waits}" if waits else None

    def snapshot(self) -> Snapshot:
        """See :class:`worker.telemetry.http.Provider`."""
        return self._meters.snapshot() if self._parts is None else self.exchange.ask()

    def reading(self) -> Reading:
        """The input of :class:`worker.process.progress.Progress`, as of the last :meth:`look`."""
        return self._reading

    def state(self) -> dict[str, Any]:
        """The worker's state for a report about a stuck process; needs no help from the loop's thread."""
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
            "waits": self.waits_for_brokers() or self.waits_outside(),
            "partitions": {
                f"{p.topic}/{p.number}": {"position": view.position, "end": view.end, "waits": view.waits}
                for p, view in self._reading.partitions.items()
            },
        }

    def _idle_s(self, loop: Loop) -> float:
        return (self._clock_ns() - loop.turned_ns) / 1e9

    # -- for the loop's thread -----------------------------------------------------------------------------

    def look(self) -> None:
        """Refresh the read, answered and end positions of each partition, and whether a broker is connected."""
        if self._parts is None:
            return
        loop, source, pool = self._parts
        self._reach = source.lag()
        self._was_member = self._was_member or loop.joined
        self._away = self.elsewhere_away() if source.brokers_up else ""
        if source.brokers_up and not self._away:
            self._brokerless = None
        elif self._brokerless is None:
            self._brokerless = (self._clock_ns(), self._wall_s())
        seen = views(loop.window, pool.oldest(), self._reach, loop.paused, loop.waits())
        # a drain has a separate deadline, so progress is not watched meanwhile
        self._reading = Reading({} if loop.draining else seen, brokers=self._brokerless is None)
        self._seen = self._partitions(loop, self._reach)
        if self._reach:
            states = self._seen.items()
            self._rates.look(self._clock_ns() / 1e9, ((partition, state.done) for partition, state in states))

    def scene(self) -> Scene | None:
        """The worker as of the last look, for its log; None before `attach`."""
        if self._parts is None:
            return None
        loop = self._parts[0]
        return Scene(
            self._clock_ns() / 1e9,
            self._brokerless is None,
            self._seen,
            self._meters.live,
            sum(self._errors(), Counter()),
            self.last_error(),
            loop.draining or loop.stop_requested,
            self.waits_outside(),
            away=self._away,
        )

    def take_snapshot(self) -> Snapshot:
        """A consistent snapshot of now, made between two turns of the loop."""
        if self._parts is None:
            return self._meters.snapshot()
        loop, source, _ = self._parts
        # The last report of a drain comes after the source is closed, so it uses the positions of the last look.
        partitions = self._partitions(loop, source.lag() or self._reach)
        for partition, state in partitions.items():
            partitions[partition] = state._replace(drain_s=self._rates.seconds(partition, state.lag))
        errors = sum(self._errors(), Counter())
        kafka = KafkaState(
            self._brokerless is None,
            len(loop.window.owned),
            errors,
            self.waits_outside() is None,
            self.throttled_s(),
        )
        return self._meters.snapshot(loop.budget.held, partitions, kafka)

    def _partitions(self, loop: Loop, reach: Mapping[Partition, Reach]) -> dict[Partition, PartitionState]:
        window, partitions = loop.window, {}
        for partition, read in reach.items():
            if partition not in window.owned:  # lost since the last look: its positions are forgotten
                continue
            position = window.position(partition)
            if position is None:
                position = read.start  # nothing is acknowledged yet
            partitions[partition] = PartitionState(
                position,
                window.committed_position(partition),
                read.end if read.end >= 0 else None,
                read.unreadable if position == read.position else 0,
                read.age_s,
            )
        return partitions

    def answer(self) -> None:
        """Give a snapshot to the threads that wait for one."""
        if self.exchange.wanted:
            self.exchange.answer(self.take_snapshot())
