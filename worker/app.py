"""The composition root: the models that :mod:`worker.serving.load` makes of the settings, between a Kafka source and sink.

:mod:`worker.assembly` puts the clients and the loop together; this file adds what watches and reports them.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from worker import __version__
from worker.assembly import conductor_for, connect, pool_for, shadow_results, told_to
from worker.banner import banner
from worker.batch import Batch
from worker.in_force import InForce, Watched, retry_s
from worker.payload.keys import Keys
from worker.process import runtime
from worker.process.leaving import leave
from worker.process.progress import Progress
from worker.process.replica import Orders
from worker.process.rounds import Chore, Rounds, every
from worker.process.watchdog import AwakeClock, BatchDeadline, DrainDeadline, Outage, Standstill, Watchdog
from worker.process.worker import Worker
from worker.reload import Reloader
from worker.schema_registry.opening import open_registry
from worker.seeing import Seeing
from worker.serving.control import Book
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.serving.loader import Loader, Overgrown, Swap
from worker.serving.rollout import Rollout
from worker.serving.servable import Servable
from worker.serving.steward import Steward, agree, read_books
from worker.serving.versions import resolved
from worker.settings import Settings
from worker.settings.current import Current
from worker.telemetry import logs
from worker.telemetry.debug_lines import SlabLines
from worker.telemetry.drift import LOOK_EVERY_S as DRIFT_EVERY_S
from worker.telemetry.drift import DriftReports
from worker.telemetry.meters import Meters, ModelLabel
from worker.telemetry.tellers import story_of
from worker.telemetry.topic import MetricsReporter, WorkerInfo
from worker.telemetry.vitals import LOOK_EVERY_S, Vitals
from worker.tracing import TraceParts, trace_parts

if TYPE_CHECKING:
    from worker.kafka.control import ControlTopic

CHANGES_EVERY_S = 0.2
"""How often a changed configuration is put into force, and an idle worker takes over a new version of a model; a busy one
does that with its next slab."""
TOPICS_EVERY_S = 0.25
"""How often the answers about topics are looked for; the watch itself decides when it asks."""

log = logs.get("worker")


def build(now: Current, index: int, orders: Orders | None, read: Callable[[], Current]) -> Worker:
    """Load the models, connect to Kafka and start the watchers. HTTP answers from the start: alive, warming up.

    Args:
        now: the configuration of this replica.
        index: which replica this is; its HTTP port is the configured one plus this.
        orders: of the supervisor; None without one.
        read: gives the configuration as it is later.

    Raises:
        WorkerError: a model, a topic, a right or a port is missing.
    """
    from worker.kafka.properties import check_properties, client_id

    settings = now.settings
    check_properties(
        settings.kafka
    )  # first: loading a large model takes longer than finding a misspelt property
    if any(each.input.reference or each.output.offload for each in settings.pipelines.values()):
        runtime.share_memory()
    meters = Meters(dict.fromkeys(settings.pipelines))
    vitals = Vitals(meters, settings.limits.stall_s)
    info = WorkerInfo(
        client_id(settings), settings.kafka["group.id"], socket.gethostname(), os.getpid(), __version__
    )
    traces = trace_parts(settings, info)
    address = settings.metrics.http
    seeing = Seeing(settings, address, index, vitals, info) if address else None
    took: dict[str, int] = {}
    control, books, decided = _control(settings)
    with_files, found = resolved(settings, decided)
    keys = Keys(settings.encryption) if settings.encryption is not None else None
    rollouts = load(with_files, took, keys, open_registry(settings))
    runtime.loaded()
    for name, rollout in rollouts.items():
        meters.model(name, _label(rollout.stable))
    running = {name: (version, took[name]) for name, version in found.items()}
    loader = Loader(settings, rollouts, running, by_order=books, took=took)
    steward = Steward(settings, control, books, loader, rollouts) if control is not None else None
    if steward is not None:
        steward.prepare()
    parts = _Parts(
        with_files, [*rollouts.values()], meters, vitals, info, seeing, orders, loader, steward, traces
    )
    parts.reloader = Reloader(
        now, read, loader, rollouts, parts.in_force.follow, meters.configured, keys, steward
    )
    return parts.worker()


def _control(settings: Settings) -> tuple[ControlTopic | None, dict[str, Book], dict[str, str]]:
    """The control topic, what it says of each pipeline with versions, and the version of each by which it begins.

    Raises:
        WorkerError: the topic is missing, or cannot be read or written.
    """
    if settings.control is None:
        return None, {}, {}
    from worker.kafka.control import open_control

    control = open_control(settings)
    books = read_books(control, [n for n, each in settings.pipelines.items() if each.model.repository])
    known = {name: book.stable for name, book in books.items() if book.stable is not None}
    _, found = resolved(settings, known)
    return control, books, agree(control, books, {name: found[name].version.name for name in books})


def _label(servable: Servable) -> ModelLabel:
    return ModelLabel(servable.model_name, servable.model_version, servable.model.provider)


class _Parts:
    """What a worker is made of, in the order in which it is made: Kafka clients, the loop, what watches the loop."""

    def __init__(
        self,
        settings: Settings,
        rollouts: list[Rollout],
        meters: Meters,
        vitals: Vitals,
        info: WorkerInfo,
        seeing: Seeing | None,
        orders: Orders | None,
        loader: Loader,
        steward: Steward | None,
        traces: TraceParts | None,
    ) -> None:
        self._traces = traces
        if traces is not None:
            meters.spans = traces.counts
        self._settings = settings
        self._loader = loader
        self._steward = steward
        self._rollouts = rollouts
        self._meters = meters
        self._vitals = vitals
        self._info = info
        self._seeing = seeing
        self._orders = orders
        self._clients = connect(settings, meters, info.group)
        engine = Engine(retry_s=retry_s(settings.limits))
        self._pool = pool_for(engine, rollouts)
        self._story, letters = story_of(log, settings.kafka["bootstrap.servers"], vitals.scene)
        seen = seeing.observers if seeing is not None else ()
        self._conductor = conductor_for(
            settings,
            rollouts,
            self._clients,
            self._pool,
            meters,
            info.id,
            self._rounds(),
            [*seen, SlabLines(log)] if logs.shows_debug() else seen,
            told_to(letters.add, *([seeing.letters.add] if seeing is not None else [])),
            traces.tracer if traces is not None else None,
        )
        if steward is not None:
            self._conductor.membership.on_new = steward.assigned
            steward.owned = lambda: self._conductor.window.owned
        source, sink = self._clients.source, self._clients.sink
        vitals.attach(self._conductor, source, self._pool, lambda: (source.errors, sink.errors))
        vitals.last_error = lambda: source.health.last_error or sink.last_error
        vitals.throttled_s = lambda: source.health.throttled_s
        watched, awake = self._ways_to_be_stuck()
        self._watchdog = self._watch(watched, awake)
        self.in_force = InForce(self._conductor, engine, vitals, watched, traces)
        """Who keeps to what may change."""
        self.reloader: Reloader | None = None
        """Of the configuration; set before the loop turns."""
        if seeing is not None:
            seeing.warm(rollouts)

    def _rounds(self) -> Rounds:
        """What the loop does between two turns besides records."""
        vitals = self._vitals
        self._look = every(LOOK_EVERY_S, vitals.look)
        chores = [
            self._look,
            every(LOOK_EVERY_S, self._story.look),
            every(0.0, vitals.answer),
            every(CHANGES_EVERY_S, self._follow_changes),
        ]
        watches = {r.route.name: r.route.drift for r in self._rollouts if r.route.drift is not None}
        if watches:
            chores.append(every(DRIFT_EVERY_S, DriftReports(watches, self._meters, log).look))
        if not self._clients.topics.embedded:
            from worker.kafka.watch import TopicWatch

            watch = TopicWatch(
                self._settings,
                self._clients.topics.ids,
                lambda: {partition.topic for partition in self._conductor.window.owned},
            )
            chores.append(every(TOPICS_EVERY_S, self._unless_draining(watch.look)))
        chores += self._watch_elsewhere()
        self._reporter = reporter = self._make_reporter()
        if reporter is not None:

            def report(_now_s: float) -> float:
                self._report()
                return reporter.due_s

            chores.append(Chore(reporter.due_s, report))
        return Rounds(chores, time.monotonic)

    def _follow_changes(self) -> None:
        """Put a changed configuration into force, take over what the loader has offered, and count what it has done."""
        if self.reloader is not None:
            self.reloader.turn()
        for event in self._loader.turn():
            if isinstance(event, Swap):
                self._meters.model(event.pipeline, _label(event.servable))
                self._meters.swapped(event.pipeline)
            elif isinstance(event, Overgrown):
                self._conductor.stop_requested = True
            else:
                self._meters.refused(event.pipeline, event.reason)
        for turned in self._steward.turn() if self._steward is not None else ():
            self._meters.rollout(turned.pipeline, turned.state, turned.share)

    def _watch_elsewhere(self) -> list[Chore]:
        """Looks at the clusters of ``output.kafka``: whether they answer, and whether their topics are there."""
        from worker.kafka.clusters import clusters_of
        from worker.kafka.watch import TopicWatch

        watches = [TopicWatch(self._settings, cluster=each) for each in clusters_of(self._settings)]
        self._vitals.elsewhere_away = lambda: next((each.away for each in watches if each.away), "")
        return [every(TOPICS_EVERY_S, self._unless_draining(each.look)) for each in watches]

    def _unless_draining(self, do: Callable[[], None]) -> Callable[[], None]:
        return lambda: None if self._conductor.draining else do()

    def _ways_to_be_stuck(self) -> tuple[Watched, AwakeClock]:
        limits, conductor = self._settings.limits, self._conductor
        awake = AwakeClock(time.monotonic)
        watched = Watched(
            DrainDeadline(limits.drain_s, lambda: conductor.stop_requested and not conductor.draining, awake),
            BatchDeadline(limits.batch_timeout_s, self._pool.oldest, self._interrupt, awake),
            Standstill(limits.stall_s, lambda: conductor.turned_ns, awake),
            Outage(limits.outage_s, self._vitals.someone_away, awake),
            Progress(limits.stall_s, self._vitals.reading, awake),
        )
        self._vitals.watch(watched.progress.standing)
        return watched, awake

    def _watch(self, watched: Watched, awake: AwakeClock) -> Watchdog:
        checks = [each.stuck for each in watched.all]
        return Watchdog(checks, self._vitals.state, log.error, logs.fatal, awake, leave)

    def worker(self) -> Worker:
        """The parts together."""
        from worker.kafka.batch_sink import BatchSink

        settings, info = self._settings, self._info
        assert self.reloader is not None
        clients = self._clients.metrics, shadow_results(settings, self._rollouts), self._clients.sink
        return Worker(
            self._conductor,
            self._vitals,
            self._watchdog,
            self._look,
            self._pool,
            self._rollouts,
            self._loader,
            [client for client in clients if client is not None],
            self._seeing,
            self._before_joining,
            self._last_report,
            banner(
                settings,
                info,
                self._clients.topics.partitions,
                isinstance(self._clients.sink, BatchSink) or getattr(self._clients.sink, "compiled", False),
                self._seeing.url if self._seeing is not None else None,
            ),
            self.reloader,
            self._steward,
            lambda: self._clients.source.commit_failures,
            self._traces,
        )

    def _before_joining(self) -> None:
        """The supervisor hears of our id in the group; whoever died in our place is taken out of the group."""
        if self._orders is None:
            return
        self._clients.source.on_member = self._orders.report_up
        if self._orders.predecessor:  # a member of a share group has no name
            from worker.kafka.leave import leave_for

            leave_for(self._settings, self._orders.predecessor)

    def _interrupt(self, batch: Batch) -> None:
        """Stop the model runs of a batch that is past its time; its records are then tried one by one."""
        log.warning("batch past its time", pipeline=batch.route.name, records=len(batch))
        if batch.trial is not None and batch.servable is batch.trial.candidate:
            batch.trial.overdue()  # no record is to blame: the stable servable answers them
        self._conductor.batch_overdue = True
        batch.servable.interrupt()

    def _make_reporter(self) -> MetricsReporter | None:
        topic, producer = self._settings.metrics.topic, self._clients.metrics
        if topic is None or producer is None:
            return None
        return MetricsReporter(
            self._info,
            self._settings.metrics.interval_s,
            lambda key, value: producer.send(topic, key, value),
            self._vitals.take_snapshot(),
        )

    def _last_report(self) -> None:
        self._story.close()
        self._report()

    def _report(self) -> None:
        if self._reporter is not None:
            self._reporter.report(self._vitals.take_snapshot())
