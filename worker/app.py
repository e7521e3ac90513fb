"""The composition root: the only file that names every concrete class.

``build`` puts what :mod:`worker.serving.load` makes of the settings between a Kafka source and sink.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable

from worker import __version__, native
from worker.batch import Batch
from worker.loop.accounts import Accounts
from worker.loop.admission import Admission
from worker.loop.at_least_once import AtLeastOnce
from worker.loop.budget import Budget
from worker.loop.caution import Caution, Note
from worker.loop.conductor import Conductor
from worker.loop.delivery import Delivery
from worker.loop.exactly_once import ExactlyOnce
from worker.loop.intake import Intake
from worker.loop.intakes import Intakes, groups
from worker.loop.isolation import Isolation
from worker.loop.limit import DeadLetterRate
from worker.loop.membership import Parts
from worker.loop.outbox import Letterhead, Outbox
from worker.loop.pool import InlinePool, Mailbox, ThreadPool
from worker.loop.tasks import spawn
from worker.loop.window import Window
from worker.process import runtime
from worker.process.leaving import leave
from worker.process.progress import Progress
from worker.process.replica import Orders
from worker.process.rounds import Chore, Rounds, every
from worker.process.watchdog import AwakeClock, BatchDeadline, DrainDeadline, Outage, Standstill, Watchdog
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.serving.rollout import Rollout
from worker.settings import Settings
from worker.telemetry import logs
from worker.telemetry.http import HttpServer
from worker.telemetry.meters import Meters, ModelLabel
from worker.telemetry.topic import MetricsReporter, WorkerInfo
from worker.telemetry.vitals import LOOK_EVERY_S, Vitals

LAST_NOTE_S = 0.5
"""Longest wait for the loop's last note when a second signal ends the process."""
COMMIT_INTERVAL_S = 0.5
TOPICS_EVERY_S = 0.25
"""How often the answers about topics are looked for; the watch itself decides when it asks."""
RETRY_SHARE = 0.75
"""Most of limits.stall_s for which custom code may hold a record: the watchdog must not take that for a stall."""

log = logs.get("worker")


def check_broker(settings: Settings) -> list[tuple[str, str]]:
    """What the broker says of the topics: (name of the check, sentence).

    Raises:
        WorkerError: unreachable, not authorised, or a topic is missing.
    """
    from worker.kafka.topics import open_topics

    topics = open_topics(settings, make=False)
    return [("broker", topics.broker), ("topics", topics.describe()), ("limits", topics.describe_limits())]


# -- the worker ----------------------------------------------------------------------------------------


def build(settings: Settings, index: int, orders: Orders | None) -> App:
    """Load the models, connect to Kafka and start the watchers. HTTP answers from the start: alive, warming up.

    Args:
        index: which replica this is; its HTTP port is the configured one plus this.
        orders: of the supervisor; None without one.

    Raises:
        WorkerError: a model, a topic, a right or a port is missing.
    """
    from worker.kafka.properties import check_properties, client_id

    check_properties(
        settings.kafka
    )  # first: loading a large model takes longer than finding a misspelt property
    meters = Meters(dict.fromkeys(settings.pipelines))
    vitals = Vitals(meters, settings.limits.stall_s)
    info = WorkerInfo(
        client_id(settings), settings.kafka["group.id"], socket.gethostname(), os.getpid(), __version__
    )
    address = settings.metrics.http
    http = HttpServer(address, vitals, info, index) if address else None
    rollouts = load(settings)
    runtime.loaded()
    for name, rollout in rollouts.items():
        servable = rollout.choose()
        meters.model(name, ModelLabel(servable.model_name, servable.model_version, servable.model.provider))
    return App(settings, [*rollouts.values()], meters, vitals, info, http, orders)


class App:
    """One worker: its Kafka clients, its loop, and what watches the loop."""

    def __init__(
        self,
        settings: Settings,
        rollouts: list[Rollout],
        meters: Meters,
        vitals: Vitals,
        info: WorkerInfo,
        http: HttpServer | None,
        orders: Orders | None,
    ) -> None:
        self._settings = settings
        self._rollouts = rollouts
        self._meters = meters
        self._vitals = vitals
        self._info = info
        self._http = http
        self._orders = orders
        self._connect()
        self._build_loop(rollouts)
        vitals.attach(
            self._conductor, self._source, self._pool, lambda: (self._source.errors, self._sink.errors)
        )
        self._watchdog = self._watch()

    def _connect(self) -> None:
        from worker.kafka.batch_sink import open_sink
        from worker.kafka.sink import MetricsProducer
        from worker.kafka.source import open_source
        from worker.kafka.topics import open_topics

        settings, meters = self._settings, self._meters
        self._topics = open_topics(settings)
        self._metrics = MetricsProducer(settings) if settings.metrics.topic else None
        self._source = open_source(
            settings,
            self._topics.embedded,
            self._topics.ids,
            lambda: meters.rewind("out_of_range"),
            lambda metadata: Note.parse(metadata) is not None,
        )
        exactly_once = settings.delivery == "exactly_once"
        if exactly_once and self._topics.embedded:
            log.warning(
                "the embedded broker forgets the offsets that a transaction commits: after a restart or a "
                "rebalance everything is read again; delivery: exactly_once needs a real Kafka"
            )
        # each process has an id of its own: a restart must not abort the transaction of a replica that still runs
        transactional_id = f"{self._info.group}-{uuid.uuid4()}" if exactly_once else None
        self._sink = open_sink(settings, self._topics, transactional_id)

    def _build_loop(self, rollouts: list[Rollout]) -> None:
        settings, limits = self._settings, self._settings.limits
        servables = [rollout.choose() for rollout in rollouts]
        threads, lanes = max(servable.threads for servable in servables), [s.lane for s in servables]
        engine, mailbox = Engine(retry_s=min(limits.retry_s, RETRY_SHARE * limits.stall_s)), Mailbox()
        self._pool = ThreadPool(engine, threads, lanes, mailbox) if threads else InlinePool(engine, mailbox)
        budget, window = Budget(limits.in_flight_bytes, len(parted := groups(rollouts))), Window()
        intakes = [
            Intake(
                Admission(group, limits.max_age_ms, limits.expired, limits.in_flight_bytes),
                share,
                alone=len(parted) == 1,
            )
            for group, share in zip(parted, budget.shares, strict=True)
        ]
        # an upper bound of the records of one partition that a dying process had in flight
        reach = {topic: 2 * intake.slab_records for intake in intakes for topic in intake.topics}
        caution = Caution(reach, settings.dead_letter.max_crashes)
        parts = Parts(
            self._source,
            Intakes(intakes, self._source),
            budget,
            window,
            self._outbox(),
            self._sink,
            self._delivery(caution),
            Isolation(caution, self._source, window),
            Accounts([self._meters], settings.name),
            log,
            time.monotonic_ns,
        )
        self._conductor = Conductor(
            parts,
            self._pool,
            limits.drain_s,
            limits.revoke_s,
            # a transaction holds whole slabs: publishing parts of one early gains nothing
            ordered=settings.order == "partition" or settings.delivery == "exactly_once",
            on_turn=self._rounds(),
        )

    def _outbox(self) -> Outbox:
        letters = self._settings.dead_letter
        exactly_once = self._settings.delivery == "exactly_once"
        head = Letterhead(
            letters.topic, self._info.id, self._settings.name, logs.redact, self._keeps_time, exactly_once
        )
        stop = letters.stop_after
        limit = DeadLetterRate(None, 1) if stop == "off" else DeadLetterRate(stop.ratio, stop.of_last)
        return Outbox(self._sink, head, limit)

    def _delivery(self, caution: Caution) -> Delivery:
        if self._settings.delivery == "at_least_once":
            return AtLeastOnce(
                self._source, self._sink, COMMIT_INTERVAL_S, time.monotonic_ns, caution.metadata
            )
        from worker.kafka.transactions import KafkaTransactions

        length = self._settings.transaction
        return ExactlyOnce(
            KafkaTransactions(self._source, self._sink),
            length.max_ms / 1000,
            length.max_records,
            self._settings.limits.revoke_s,
            time.monotonic_ns,
            self._meters.transaction,
            spawn,
            caution.metadata,
        )

    def _rounds(self) -> Rounds:
        """What the loop does between two turns besides records."""
        vitals = self._vitals
        self._look = every(LOOK_EVERY_S, vitals.look)
        chores = [self._look, every(0.0, vitals.answer)]
        if not self._topics.embedded:
            from worker.kafka.watch import TopicWatch

            watch = TopicWatch(self._settings, self._topics.ids)
            chores.append(every(TOPICS_EVERY_S, self._unless_draining(watch.look)))
        self._reporter = self._make_reporter()
        if self._reporter is not None:
            chores.append(Chore(self._reporter.due_s, self._report))
        return Rounds(chores, time.monotonic)

    def _unless_draining(self, do: Callable[[], None]) -> Callable[[], None]:
        return lambda: None if self._conductor.draining else do()

    def _watch(self) -> Watchdog:
        limits, conductor = self._settings.limits, self._conductor
        awake = AwakeClock(time.monotonic)
        progress = Progress(limits.stall_s, self._vitals.reading, awake)
        self._vitals.watch(progress.standing)
        checks = [
            DrainDeadline(
                limits.drain_s, lambda: conductor.stop_requested and not conductor.draining, awake
            ).stuck,
            BatchDeadline(limits.batch_timeout_s, self._pool.oldest, self._interrupt, awake).stuck,
            Standstill(limits.stall_s, lambda: conductor.turned_ns, awake).stuck,
            Outage(limits.outage_s, self._vitals.brokers_away, awake).stuck,
            progress.stuck,
        ]
        return Watchdog(checks, self._vitals.state, log.error, logs.say, awake, leave)

    # -- see worker.process.run.Worker -----------------------------------------------------------------------

    def run(self) -> None:
        """Turn the loop until it has drained."""
        from worker.kafka.batch_sink import BatchSink

        log.info(
            "started",
            client_id=self._info.id,
            group=self._info.group,
            pipelines=len(self._settings.pipelines),
            delivery=self._settings.delivery,
            batch_path=native.batch_path,
            producer="compiled" if isinstance(self._sink, BatchSink) else "python",
        )
        if self._orders is not None:
            self._source.on_member = self._orders.report_up
            if self._orders.predecessor is not None:
                from worker.kafka.leave import leave_for

                leave_for(self._settings, self._orders.predecessor)
        self._conductor.run()

    def ask_to_stop(self) -> None:
        """Drain soon; for a signal handler or another thread."""
        self._conductor.stop_requested = True
        self._look.due_s = 0.0  # the last look at the ends, for the last metrics

    def _interrupt(self, batch: Batch) -> None:
        """Stop the model runs of a batch that is past its time; its records are then tried one by one."""
        log.warning("batch past its time", pipeline=batch.route.name, records=len(batch))
        self._conductor.batch_overdue = True
        batch.servable.interrupt()

    def end_now(self) -> None:
        """Let the loop note that no record is to blame for the end that follows; wait for it a moment at most."""
        self._conductor.ending = True
        deadline_s = time.monotonic() + LAST_NOTE_S
        while not self._conductor.ended and time.monotonic() < deadline_s:
            time.sleep(0.01)

    def give_up(self) -> None:
        """Leave the consumer group without a drain."""
        self._conductor.membership.leave(2.0)

    def close(self) -> None:
        """Report the last numbers and close the clients, within a few seconds whatever the brokers do."""
        self._watchdog.close()
        last = self._vitals.take_snapshot()
        if self._reporter is not None and self._metrics is not None:
            self._reporter.report(last)
            self._metrics.close(2.0)
        counts = last.pipelines.values()
        log.info(
            "counted",
            client_id=self._info.id,
            taken=sum(count.taken for count in counts),
            ok=sum(count.ok for count in counts),
            dead_letter=sum(count.dead_letter for count in counts),
            dropped=sum(count.dropped for count in counts),
            in_flight=sum(count.in_flight for count in counts),
        )
        self._sink.close(2.0)
        if self._http is not None:
            self._http.close()
        if not self._pool.outstanding:  # a run in progress would keep its model, and this process, waiting
            for rollout in self._rollouts:
                rollout.close()

    # -- small parts -------------------------------------------------------------------------------------------

    def _keeps_time(self, timestamp_ms: int) -> bool:
        """Whether the dead-letter topic accepts and keeps a record of this timestamp (Unix milliseconds)."""
        times = self._topics.times.get(self._settings.dead_letter.topic)
        return times is None or times.keeps(timestamp_ms, time.time() * 1000)

    def _make_reporter(self) -> MetricsReporter | None:
        topic, producer = self._settings.metrics.topic, self._metrics
        if topic is None or producer is None:
            return None
        return MetricsReporter(
            self._info,
            self._settings.metrics.interval_s,
            lambda key, value: producer.send(topic, key, value),
            self._vitals.take_snapshot(),
        )

    def _report(self, _now_s: float) -> float:
        assert self._reporter is not None
        self._reporter.report(self._vitals.take_snapshot())
        return self._reporter.due_s
