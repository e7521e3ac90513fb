"""One schedule: replicas of the real loop over a fake Kafka, and everything that may go wrong, all from one seed.

``Schedule(seed).play()`` generates records with a known fate, lets one to three replicas turn in random order
under random faults, then ends the faults and turns the world until it is quiet. Judges watch every event.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from random import Random
from typing import Any

from fakes import (
    DEAD_LETTERS,
    RESULTS,
    Crash,
    FakeClock,
    FakeKafka,
    FakeMeters,
    FakePool,
    FakeRollout,
    FakeRoute,
    FakeSink,
    FakeSource,
    FakeTransactions,
    NullLog,
    Record,
    Witness,
    never,
)
from sim_rollouts import Decisions, SimRollout
from sim_store import SlowCalls, Store
from world import Figures, World, make_loop

from worker.batch import Batch, Headers, Lane, Partition
from worker.errors import ClientFatal, Stalled, WorkerError
from worker.loop.at_least_once import AtLeastOnce
from worker.loop.budget import Budget
from worker.loop.caution import Caution
from worker.loop.conductor import Conductor
from worker.loop.delivery import Annotate, Delivery
from worker.loop.exactly_once import ExactlyOnce
from worker.loop.fetching import Fetching
from worker.loop.outbox import Outbox
from worker.loop.pool import Returned
from worker.loop.tasks import Task
from worker.loop.window import Window

TURNS_TO_QUIET = 30_000
LARGEST_RECORD = 3_000
LARGEST_COST = 2 * LARGEST_RECORD + 1_000
"""Decode scratch and tensors of one record."""
EXPIRED = "2001-01-01T00:00:00Z"


class Violation(AssertionError):
    """A promise was broken.

    Args:
        judge: who saw it.
    """

    def __init__(self, judge: str, what: str) -> None:
        super().__init__(f"{judge}: {what}")
        self.judge = judge


class LazyTask:
    """A call beside the loop, without a thread: it runs at once, when it is waited for, or at some look at it."""

    def __init__(self, rng: Random, _name: str, call: Callable[[], None]) -> None:
        self._rng = rng
        self._call: Callable[[], None] | None = call
        self._perhaps()

    @property
    def done(self) -> bool:
        self._perhaps()
        return self._call is None

    def wait(self, timeout_s: float) -> bool:
        call, self._call = self._call, None
        if call is not None:
            call()
        return True

    def _perhaps(self) -> None:
        if self._rng.random() < 0.3:
            self.wait(0.0)


class StuckTask:
    """A call that never returns, whatever became of what it asked for."""

    done = False

    def wait(self, timeout_s: float) -> bool:
        return False


class SlowPool(FakePool):
    """Batches take random times: they come back out of order."""

    def __init__(self, clock: FakeClock, rng: Random, slowest_s: float, capacity: int) -> None:
        super().__init__(clock, capacity)
        self.out_of_order = 0
        self._rng = rng
        self._slowest_ns = int(slowest_s * 1e9)
        self._share: dict[Lane, float] = {}
        """How slow each lane is, as a part of the slowest: pipelines beside one another differ."""
        self._ready_ns: dict[int, int] = {}
        self.told: Callable[[Batch], None] = lambda batch: None
        """Hears of every batch."""

    def submit(self, batch: Batch) -> None:
        super().submit(batch)
        self.told(batch)
        share = self._share.setdefault(batch.servable.lane, self._rng.choice([0.0, 0.1, 1.0]))
        self._ready_ns[id(batch)] = self.clock() + self._rng.randint(0, int(self._slowest_ns * share))

    def collect(self, timeout_s: float = 0.0) -> list[Returned]:
        if self.held:
            first = min(self._ready_ns[id(batch)] for batch in self.held)
            if timeout_s and first > self.clock():
                self.clock.advance(min(timeout_s, (first - self.clock()) / 1e9))
            for batch in [b for b in self.held if self._ready_ns[id(b)] <= self.clock()]:
                self.out_of_order += batch is not self.held[0]
                del self._ready_ns[id(batch)]
                if any(value.startswith(b"kill") for value in filter(None, batch.columns.values)):
                    raise Crash("model")
                self.finish(batch)
            timeout_s = 0.0
        return super().collect(timeout_s)


@dataclass(slots=True, eq=False)
class Replica:
    """One process: the real loop with its fakes."""

    name: str
    conductor: Conductor
    outbox: Outbox
    source: FakeSource
    sink: FakeSink
    pool: SlowPool
    meters: FakeMeters
    log: NullLog
    fetching: list[Fetching]
    between: Any
    """What the loop sees of the source."""
    number: int
    rollouts: list[SimRollout]
    disturbed: bool = False
    """It rewound, or lost partitions with work in flight: its counters need not match the broker's any more."""

    @property
    def window(self) -> Window:
        return self.conductor.window

    @property
    def budget(self) -> Budget:
        return self.conductor.budget

    def light_fuse(self, rng: Random) -> None:
        """Let the process be killed in one of its next calls to Kafka or the pool."""
        left = rng.randint(1, 60)
        aim = rng.choice(
            [None, None, None, "commit", "commit transaction"]
        )  # else seldom met: they are rare calls

        def fuse(step: str) -> None:
            nonlocal left
            left -= 1
            if left <= 0 and aim in (None, step):
                raise Crash(step)

        self.source.fuse = self.sink.fuse = self.pool.fuse = fuse


class Judge(Witness):
    """Watches one promise and raises :class:`Violation` the moment it is broken."""

    def begin(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def turned(self, replica: Replica) -> None:
        """A replica finished a turn of its loop."""

    def submitted(self, who: Replica, batch: Batch) -> None:
        """The replica gave a batch to its pool."""

    def ended(self, replica: Replica, drained: bool) -> None:
        """A replica is gone: drained in order, or killed."""

    def quiet(self) -> None:
        """Faults have ended, everything is committed, nothing is in flight."""

    def broken(self, what: str) -> Violation:
        return Violation(type(self).__name__, what)


HOOKS = [
    name for name in (*vars(Witness), "turned", "submitted", "ended", "quiet") if not name.startswith("_")
]


class Court(Judge):
    """All judges as one witness; who does not care about an event is not called for it."""

    def __init__(self, judges: Iterable[Judge]) -> None:
        self._judges = list(judges)
        for hook in HOOKS:
            idle = getattr(Judge, hook)
            setattr(
                self,
                hook,
                _fan([getattr(j, hook) for j in self._judges if getattr(type(j), hook) is not idle]),
            )

    def begin(self, schedule: Schedule) -> None:
        for judge in self._judges:
            judge.begin(schedule)


def _fan(listening: list[Callable[..., None]]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        for listener in listening:
            listener(*args)

    return listening[0] if len(listening) == 1 else call


@dataclass(frozen=True, slots=True)
class Weather:
    """Which faults a schedule has, each a probability per step."""

    rebalance: float
    join: float
    kick: float
    crash: float
    stop: float
    outage: float
    stall: float
    refuse: float
    refuse_commits: float

    @classmethod
    def forecast(cls, rng: Random, killers: bool) -> Weather:
        """Every fault is absent from half of the schedules, so that each is also seen in calm company.

        Where records kill, nothing else does: a process that dies of something else three times in a row while
        it works on one record cannot be told from one that the record killed.
        """
        if killers:
            return cls(rng.random() * 0.10, rng.random() * 0.05, *[0.0] * 7)
        return cls(
            *(
                often * rng.random() if rng.random() < 0.5 else 0.0
                for often in (0.10, 0.05, 0.05, 0.05, 0.02, 0.05, 0.08, 0.05, 0.05)
            )
        )


class Schedule:
    """A world made from a seed.

    Args:
        judges: told of every event.
        cases: how often each hard case was met; counted up.
    """

    def __init__(self, seed: int, judges: Iterable[Judge] = (), cases: Counter[str] | None = None) -> None:
        self.seed = seed
        self.cases = cases if cases is not None else Counter()
        self.rng = rng = Random(seed)
        self._client_rng = Random(seed + 1_000_000)
        """For what the client does of itself: how it reports, and calls that never return."""
        self.clock = FakeClock()
        self.court = Court(judges)
        self.fates: dict[tuple[Partition, int], str] = {}
        """What must become of each record: ``result``, ``tombstone``, ``dropped``, or a dead letter's reason."""
        self.replicas: list[Replica] = []
        self.limit_bytes = rng.choice([LARGEST_RECORD * 4, 20_000, 1_000_000])
        self.exactly_once = rng.random() < 0.3
        self.ordered = self.exactly_once or rng.random() < 0.8
        self.rollouts = self.make_rollouts(rng, Random(seed + 2_000_000))
        self.slab_records = max(rollout.stable.slab_records for rollout in self.rollouts)
        self._tombstone = self.rollouts[0].route.tombstone
        self._expired = rng.choice(["dead_letter", "drop", "publish"])
        self._killers = rng.random() < 0.15
        self._weather = Weather.forecast(rng, self._killers)
        self._started = 0
        self._calmed = False
        topics = sorted({topic for rollout in self.rollouts for topic in rollout.route.topics})
        self.kafka = FakeKafka(
            self.clock,
            {topic: rng.randint(1, 3) for topic in topics},
            {RESULTS: rng.randint(1, 3)},
            eager=rng.random() < 0.3,
            witness=self.court,
        )
        self.capacity = rng.choice([3, 10, 1_000])
        self._slowest_s = rng.choice([0.0, 0.01, 0.01 if self._killers else 0.06])
        self._odd = rng.choice([0.0, 0.1, 0.4])
        self._store_rng = Random(seed + 2_000_000)
        self.fetches = not self._killers and self._store_rng.random() < 0.3
        """Records have references to payloads in a store."""
        self.store = Store(self.clock, self._store_rng, LARGEST_RECORD, self.cases)
        rolling = Random(seed + 3_000_000)
        self.decisions = Decisions(
            self.rollouts, rolling, rolling.choice(self.decides), rolling.random() < 0.5, self.cases
        )
        self.court.begin(self)

    decides: tuple[float, ...] = (0.0, 0.0, 0.05, 0.2)
    """How often something is decided about the versions of a pipeline, per step."""

    def make_rollouts(self, rng: Random, keeping: Random) -> list[FakeRollout]:
        """The pipelines."""
        return _rollouts(rng, keeping)

    # -- the play ----------------------------------------------------------------------------------------

    def play(self) -> None:
        """Run the whole schedule.

        Raises:
            Violation: a judge saw a promise broken, or the loop raised what it should not.
        """
        rng = self.rng
        for _ in range(rng.randint(1, 3)):
            self._start()
        for _ in range(rng.randint(30, 90)):
            for _ in range(rng.choice([0, 0, 1, 5])):
                self._produce()
            self._disturb()
            self._step(rng.choice(self.replicas) if self.replicas else self._start())
        self._calm()
        for turns in range(TURNS_TO_QUIET):
            if self._is_quiet():
                break
            self._step(self.replicas[turns % len(self.replicas)])
        else:
            raise Violation("Progress", f"not quiet after {TURNS_TO_QUIET} turns: {self._state()}")
        self.court.quiet()
        for replica in list(self.replicas):
            self._drain(replica)

    def _step(self, replica: Replica) -> None:
        self._guard(replica, replica.conductor.turn)
        if replica in self.replicas:
            self.court.turned(replica)

    def _drain(self, replica: Replica) -> None:
        self.cases["drain in flight"] += replica.window.slabs > 0
        self._guard(replica, replica.conductor.membership.drain)
        if replica in self.replicas:
            self._gone(replica, drained=True)

    def _guard(self, replica: Replica, act: Callable[[], None]) -> None:
        """What may end a process ends it; anything else is a bug."""
        try:
            act()
        except Crash as crash:
            self.cases[f"crash in {crash}"] += 1
            self.cases["crash with unacknowledged outputs"] += len(replica.sink) > 0
            self._gone(replica, drained=False)
        except (ClientFatal, Stalled) as error:
            if not self._weather_explains(error):
                raise Violation("Progress", f"{replica.name} gave up: {error}") from error
            self.cases[f"ended by {type(error).__name__}"] += 1
            self._gone(replica, drained=False)
        except Violation:
            raise
        except (WorkerError, Exception) as error:
            raise Violation("NoBug", f"{replica.name} raised {error!r}") from error

    def _weather_explains(self, error: WorkerError) -> bool:
        weather = self._weather
        if isinstance(error, ClientFatal) and self.exactly_once:
            return any(astuple(weather))
        if isinstance(error, ClientFatal):
            return weather.refuse > 0
        return not self._calmed and weather.refuse + weather.outage + weather.stall > 0

    # -- replicas ----------------------------------------------------------------------------------------

    def _start(self) -> Replica:
        self._started += 1
        replica = self._build(f"replica-{self._started}")
        replica.between.subscribe(replica.conductor.membership)
        self.replicas.append(replica)
        self.kafka.rebalance()
        return replica

    def _build(self, name: str) -> Replica:
        source = FakeSource(self.kafka, rng=self.rng)
        sink = FakeSink(
            self.kafka, rng=self.rng, capacity=self.capacity, by_count=self._client_rng.random() < 0.5
        )
        sink.limits = {RESULTS: 1_000, DEAD_LETTERS: 2_500}
        pool = SlowPool(self.clock, self.rng, self._slowest_s, self.rng.randint(1, 3))
        between = self._between(source)
        rollouts = self.decisions.of_new_replica()
        world = make_loop(
            self.clock,
            between,
            sink,
            pool,
            rollouts,
            Figures(
                name=name,
                limit_bytes=self.limit_bytes,
                drain_s=2.0,
                revoke_s=0.1,
                ordered=self.ordered,
                expired=self._expired,
                max_crashes=3 if self._killers else 10_000,
            ),
            lambda caution: self._delivery(source, between, sink, caution),
            cpu_ns=self.clock,  # always busy: slabs are kept as far apart as may be, and hold several records
            outside=(self.store, lambda: SlowCalls(self.clock, self._store_rng)) if self.fetches else None,
        )
        fetching = [intake.fetching for intake in world.intakes if intake.fetching is not None]
        self._built(between, world)
        self.cases["several intakes"] += len(world.intakes) > 1
        replica = Replica(
            name,
            world.conductor,
            world.outbox,
            source,
            sink,
            pool,
            world.meters,
            world.log,
            fetching,
            between,
            self._started,
            rollouts,
        )
        source.who = sink.who = replica
        pool.told = lambda batch: self.court.submitted(replica, batch)
        return replica

    def _between(self, source: FakeSource) -> Any:
        """What the loop sees of the source."""
        return source

    def _built(self, between: Any, world: World) -> None:
        """The loop of a replica is put together."""

    def kept_bytes(self, replica: Replica) -> int:
        """Bytes that a replica holds when nothing is in flight."""
        return 0

    def _annotated(self, between: Any, caution: Caution) -> Annotate:
        """What gives the metadata of a transaction's positions."""
        return caution.metadata

    def _delivery(self, source: FakeSource, between: Any, sink: FakeSink, caution: Caution) -> Delivery:
        if not self.exactly_once:
            return AtLeastOnce(between, sink, 0.05, self.clock, caution.metadata)
        transactions = FakeTransactions(self.kafka, source, sink, self.rng, self._client_rng)

        def spawn(name: str, call: Callable[[], None]) -> Task:
            if name != "commit" or self._calmed or sink.fuse is not never or self._client_rng.random() > 0.03:
                return LazyTask(self.rng, name, call)
            if self._client_rng.random() < 0.5:
                call()  # the broker took it, or refused it; nobody hears of it
            transactions.hung = True
            self.cases["commit that never returns"] += 1
            return StuckTask()

        return ExactlyOnce(
            transactions,
            0.05,
            20,
            1.0,
            self.clock,
            self._count_transaction,
            spawn,
            self._annotated(between, caution),
        )

    def _count_transaction(self, result: str) -> None:
        self.cases[f"transaction {result}"] += 1

    def _gone(self, replica: Replica, drained: bool) -> None:
        self.cases["batches out of order"] += replica.pool.out_of_order
        if not drained:
            replica.sink.die()
        self.kafka.leave(replica.source)
        self.replicas.remove(replica)
        self.court.ended(replica, drained)
        if self.replicas:
            self.kafka.rebalance()

    # -- faults ------------------------------------------------------------------------------------------

    def _disturb(self) -> None:
        rng, weather, kafka = self.rng, self._weather, self.kafka
        self.store.up = self._store_rng.random() < (0.95 if self.store.up else 0.2)
        if not kafka.up:
            kafka.up = rng.random() < 0.2
        elif rng.random() < weather.outage:
            kafka.up = False
            self.cases["outage"] += 1
        if kafka.members and rng.random() < weather.rebalance:
            kafka.rebalance({p: rng.choice(kafka.members) for p in kafka.logs})
            self.cases["eager rebalance" if kafka.to_give_up else "cooperative rebalance"] += 1
        if len(self.replicas) < 3 and rng.random() < weather.join:
            self._start()
        self.decisions.step((replica.number, replica.rollouts) for replica in self.replicas)
        if self.replicas:
            self._pick_on(rng.choice(self.replicas))

    def _pick_on(self, replica: Replica) -> None:
        rng, weather = self.rng, self._weather
        replica.sink.stalled = (
            rng.random() < weather.stall if not replica.sink.stalled else rng.random() < 0.7
        )
        replica.source.refuse_commits = rng.random() < weather.refuse_commits
        if rng.random() < weather.refuse:
            replica.sink.refuse = rng.randint(1, 3)
        if rng.random() < weather.crash:
            replica.light_fuse(rng)
        if rng.random() < weather.kick and replica.source in self.kafka.members:
            self.kafka.kick(replica.source)
            if self.kafka.members:
                self.kafka.rebalance()
        if rng.random() < weather.stop:
            self._drain(replica)

    def _calm(self) -> None:
        """No more faults; at least one replica."""
        self._calmed = self.kafka.up = self.store.up = True
        for replica in self.replicas:
            replica.source.fuse = replica.sink.fuse = replica.pool.fuse = never
            replica.sink.stalled = replica.source.refuse_commits = False
            replica.sink.refuse = 0
            self.decisions.calm(replica.rollouts)
        if not self.replicas:
            self._start()
        self.kafka.rebalance()

    def _is_quiet(self) -> bool:
        if not self.replicas:
            self._start()
        if any(r.source.kicked or r.source not in self.kafka.members for r in self.replicas):
            return False
        if set(self.kafka.target) != set(self.kafka.logs):
            self.kafka.rebalance()  # somebody came back
        if any(fetching.active for replica in self.replicas for fetching in replica.fetching):
            return False
        return self.kafka.drained() and not any(r.window.slabs or len(r.sink) for r in self.replicas)

    def _state(self) -> str:
        behind = {p: (self.kafka.committed.get(p, 0), self.kafka.end(p)) for p in self.kafka.logs}
        window = [(r.name, r.window.slabs, r.budget.held, r.pool.outstanding) for r in self.replicas]
        return f"(committed, end) {behind}; (replica, slabs, bytes, batches) {window}"

    # -- records -----------------------------------------------------------------------------------------

    def _produce(self) -> None:
        rng = self.rng
        partition = rng.choice(list(self.kafka.logs))
        gap = rng.randint(1, 5) if rng.random() < 0.1 else 0
        record = self.kafka.append(partition, b"", gap, timestamp_ms=int(self.clock.wall_ms()))
        fate = self._odd_record(record) if rng.random() < self._odd else self._good_record(record)
        if self.fetches and record.value is not None and self._expiry(record) is None:
            fate = self.store.put(record, fate)
            self.cases[fate] += fate.startswith("reference")
        self.fates[partition, record.offset] = fate

    @staticmethod
    def _expiry(record: Record) -> bytes | None:
        return dict(record.headers or ()).get("ce_expirytime")

    def _good_record(self, record: Record) -> str:
        rng = self.rng
        record.value = b"good" * rng.choice([1, 5, 20, 400])
        if not self.fetches and self.decisions.fussy():
            record.value = b"fussy"
        record.key = rng.choice([None, b"a", b"b", b"c"])
        record.headers = self._headers(record.partition.topic)
        return "result"

    def _odd_record(self, record: Record) -> str:
        self._good_record(record)
        fates = ["invalid", "too_large", "too_large_output", "tombstone", "expired", "unroutable"]
        fate = "crashed" if self._killers and self.rng.random() < 0.05 else self.rng.choice(fates)
        self.cases[fate] += 1
        match fate:
            case "invalid":
                record.value = b"bad" * self.rng.choice([1, 900])
            case "crashed":
                record.value = b"kill"
            case "too_large":
                record.value = b"x" * LARGEST_RECORD
            case "too_large_output":
                record.value = b"huge" * 100
            case "tombstone":
                record.value, record.key = None, b"%d" % record.offset
                return {"pass": "tombstone", "drop": "dropped", "reject": "invalid"}[self._tombstone]
            case "expired":
                record.headers = [*(record.headers or []), ("ce_expirytime", EXPIRED.encode())]
                return {"dead_letter": "expired", "drop": "dropped", "publish": "result"}[self._expired]
            case "unroutable" if self._by_header(record.partition.topic):
                record.headers = [("to", b"nobody")]
            case "unroutable":
                return "result"
        return fate

    def may_be_refused(self, place: tuple[Partition, int]) -> bool:
        """Whether some versions refuse this record."""
        log = self.kafka.logs[place[0]]
        value = log[bisect_left(log, place[1], key=lambda record: record.offset)].value
        return value is not None and value.startswith(b"fussy")

    def newer(self, place: tuple[Partition, int], before: float) -> bool:
        """Whether a pipeline that keeps the newest may leave this record out, because it has a newer one before an offset."""
        partition, offset = place
        log = self.kafka.logs[partition]
        index = bisect_left(log, offset, key=lambda record: record.offset)
        route = self._route_of(log[index])
        return (
            route is not None
            and route.keep == "latest"
            and any(
                later.key == log[index].key and self._route_of(later) is route and later.offset < before
                for later in log[index + 1 :]
            )
        )

    def _route_of(self, record: Record) -> FakeRoute | None:
        named = dict(record.headers or []).get("to")
        for rollout in self.rollouts:
            route = rollout.route
            if record.partition.topic in route.topics and (route.when is None or route.when[1] == named):
                return route
        return None

    def _headers(self, topic: str) -> Headers | None:
        names = self._by_header(topic)
        return [("to", self.rng.choice(names).encode())] if names else None

    def _by_header(self, topic: str) -> list[str]:
        """Names of the pipelines that share this topic and tell their records by a header."""
        routes = [rollout.route for rollout in self.rollouts]
        return [route.name for route in routes if topic in route.topics and route.when is not None]


def _rollouts(rng: Random, keeping: Random) -> list[FakeRollout]:
    """Pipelines: one that takes everything, two that share their topics by a header, some on topics of their own.

    Some keep the newest record of each key only.
    """
    shapes: list[dict[str, list[str]]] = [
        {"a": ["in"]},
        {"a": ["in", "more"]},
        {"a": ["in"], "b": ["in"]},
        {"a": ["in", "more"], "b": ["in", "more"]},
        {"a": ["in"], "b": ["more"]},
        {"a": ["in"], "b": ["more"], "c": ["more"]},
        {"a": ["in"], "b": ["more"], "c": ["third"]},
    ]
    shape = rng.choice(shapes)
    tombstone = rng.choice(["pass", "drop", "reject"])
    everywhere = [topic for topics in shape.values() for topic in topics]
    return [
        FakeRollout(
            name,
            frozenset(topics),
            when=("to", name.encode()) if everywhere.count(topics[0]) > 1 else None,
            max_bytes=LARGEST_RECORD - 1,
            tombstone=tombstone,
            max_size=rng.choice([1, 3, 8]),
            item_nbytes=rng.choice([10, 1_000]),
            costly=rng.random() < 0.3,
            slab_records=rng.choice([1, 4, 16]),
            max_wait_s=rng.choice([0.001, 0.004, 0.02]),
            scratch=lambda value: 2 * len(value) if len(value) > 1_000 else 0,
            keep=keeping.choice(["all", "all", "all", "latest"]),
            priority=keeping.choice([0, 5, 5, 9]),
        )
        for name, topics in shape.items()
    ]
