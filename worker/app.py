"""The composition root: the only file that names every concrete class.

``load_pipelines`` makes pipelines of settings, ``build`` puts them between a Kafka source and sink; ``answer`` and
``check_broker`` are the same objects without the loop, for ``check``.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from worker import __version__, native
from worker.batch import Batch, Columns, Partition
from worker.errors import Reject
from worker.loop.admission import Admission
from worker.loop.at_least_once import AtLeastOnce
from worker.loop.caution import Caution
from worker.loop.conductor import Conductor, Plan
from worker.loop.delivery import Delivery
from worker.loop.exactly_once import ExactlyOnce
from worker.loop.outbox import DeadLetterRate, Letterhead, Outbox
from worker.loop.pool import InlinePool, ThreadPool
from worker.loop.tasks import spawn
from worker.loop.window import Window
from worker.process import runtime
from worker.process.rounds import Chore, Rounds, every
from worker.process.watchdog import AwakeClock, BatchDeadline, DrainDeadline, Progress, Standstill, Watchdog
from worker.serving.engine import Engine, Pipeline
from worker.settings import PipelineSettings, Settings, check_budget, check_model_file, labels_of
from worker.telemetry import logs
from worker.telemetry.http import HttpServer
from worker.telemetry.meters import Meters, ModelLabel
from worker.telemetry.topic import MetricsReporter, WorkerInfo
from worker.telemetry.vitals import LOOK_EVERY_S, Vitals

TUNING_S = 5.0
"""Most time all ``auto`` measurements of a process take together."""
WARM_BYTES = 64 << 20
"""Made-up warm-up batches never take more than this."""
SLAB_WORK_S = 0.004
SLAB_RECORDS_MAX = 2048
"""A slab holds several runs of a fast model, about this much work: what is done per slab is then shared."""
COMMIT_INTERVAL_S = 0.5
TOPICS_EVERY_S = 0.25
"""How often the answers about topics are looked for; the watch itself decides when it asks."""

log = logs.get("worker")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The models of a process, or one of them, warm, and how to run them."""

    pipelines: dict[str, Pipeline]
    threads: int
    """Of the one pool; 0 = on the conductor's own thread."""
    runs: int
    """Model runs in progress at once: ``model.instances``, and the one that a GPU copies in meanwhile."""
    ahead: int
    """Batches decoded beyond those that run."""
    slab_records: int


# -- pipelines -----------------------------------------------------------------------------------------


def load_pipelines(settings: Settings) -> dict[str, Pipeline]:
    """Every pipeline with its model loaded and warm.

    Raises:
        WorkerError: a model, its labels, its formats or the budget do not go together.
    """
    return load(settings).pipelines


def load(settings: Settings) -> Loaded:
    """Load, warm up and tune every pipeline; see :class:`Loaded`."""
    for name in settings.pipelines:
        check_model_file(settings, name)
    for key, path in settings.label_files():
        labels_of(path, key)
    deadline = time.perf_counter() + TUNING_S
    parts = [_load_one(settings, name, deadline) for name in settings.pipelines]
    return Loaded(
        {name: pipeline for part in parts for name, pipeline in part.pipelines.items()},
        threads=max(part.threads for part in parts),
        runs=max(part.runs for part in parts),
        ahead=max(part.ahead for part in parts),
        slab_records=max(part.slab_records for part in parts),
    )


def _load_one(settings: Settings, name: str, deadline: float) -> Loaded:
    from worker.encode import encoder as make_encoder
    from worker.model.session import LARGEST_UNKNOWN_SIZE
    from worker.model.session import load as load_model
    from worker.model.tune import tune, usable_cores
    from worker.records import decoder as make_decoder

    wanted = settings.pipelines[name]
    model = load_model(
        wanted.model.path,
        name=wanted.model.name or name,
        version=wanted.model.version,
        sha256=wanted.model.sha256,
        providers=wanted.model.providers,
        instances=_or(wanted.model.instances, 1),
        max_size=_or(wanted.batching.max_size, LARGEST_UNKNOWN_SIZE),
        one_shape=wanted.preprocess.one_shape,
    )
    decoder = make_decoder(wanted, model.signature, settings.limits)
    encoder = make_encoder(wanted, model.signature, model.name, model.version, _labels(wanted))
    item_nbytes = sum(spec.item_nbytes for spec in (*model.signature.inputs, *model.signature.outputs))
    check_budget(settings, name, item_nbytes)
    share = min(WARM_BYTES, settings.limits.in_flight_bytes // 2)
    tuning = tune(
        model,
        max_size=wanted.batching.max_size,
        threads=wanted.model.threads,
        instances=wanted.model.instances,
        cores=usable_cores(),
        max_bytes=share,
        deadline=deadline,
        decode_us=DECODE_US if decoder.shard_rows else 0.0,
    )
    max_size = model.warm(tuning.max_size, share)
    pipeline = Pipeline(
        name=name,
        topics=frozenset(wanted.input.topics),
        when=(wanted.when.header, wanted.when.equals.encode()) if wanted.when else None,
        max_bytes=wanted.input.max_bytes,
        tombstone=wanted.input.tombstone,
        decoder=decoder,
        model=model,
        encoder=encoder,
        max_size=max_size,
        max_wait_s=wanted.batching.max_wait_ms / 1000,
        output_topic=wanted.output.topic,
        output_partition=wanted.output.partition,
        output_errors=wanted.output.errors,
        empty=model.empty,
    )
    # what custom code takes is not known: it must not stand in the way of the loop, nor of a drain
    threads = (
        max(1, tuning.threads) if wanted.custom_code and wanted.model.threads == "auto" else tuning.threads
    )
    slab = pipeline.max_size if wanted.custom_code else _slab_records(pipeline)
    if decoder.fixed and not decoder.shard_rows and model.signature.batchable:
        pipeline.batch_records = slab
    log.info(
        "model ready",
        pipeline=name,
        model=pipeline.model_label,
        provider=model.provider,
        batchable=model.signature.batchable,
        max_size=max_size,
        threads=threads,
        slab_records=slab,
        **tuning.figures,
    )
    return Loaded(
        {name: pipeline},
        threads=threads,
        runs=tuning.instances + model.lookahead,
        ahead=model.ahead,
        slab_records=slab,
    )


def _or(figure: int | Literal["auto"], unknown: int) -> int:
    """A figure as configured; ``unknown`` where it is still to be measured."""
    return unknown if figure == "auto" else figure


DECODE_US = 150.0
"""About what decoding one small image costs outside the interpreter lock."""


def _labels(settings: PipelineSettings) -> list[str] | None:
    return labels_of(settings.label_file) if settings.label_file else None


def _slab_records(pipeline: Pipeline) -> int:
    """Records in one slab: a batch, or several of a model that is quick with one.

    Images stay at one batch: their decode is what takes the time, and the pool shares it out by itself.
    """
    model: Any = pipeline.model
    sample = model.sample(pipeline.max_size) if model.signature.batchable else model.sample(1)
    if pipeline.decoder.shard_rows or sample is None:
        return pipeline.max_size
    took = _quickest_s(lambda: model.run(sample))
    if not model.signature.batchable:
        took *= pipeline.max_size
    return pipeline.max_size * max(
        1, min(SLAB_RECORDS_MAX // pipeline.max_size, int(SLAB_WORK_S / max(took, 1e-6)))
    )


def _quickest_s(run: Callable[[], object]) -> float:
    """Seconds of the quickest of a few runs: one alone may have waited for whoever else uses the machine, and a
    process that starts with small slabs pays for each of them as long as it lives."""
    took: list[float] = []
    while len(took) < 7 and sum(took) < 5 * SLAB_WORK_S:
        started = time.perf_counter()
        run()
        took.append(time.perf_counter() - started)
    return min(took)


def answer(pipeline: Pipeline, value: bytes) -> Any:
    """One record through the whole engine: its result, parsed where it is JSON.

    Raises:
        Reject: with the reason the record would become a dead letter for.
    """
    now_ms = time.time() * 1000
    source = Partition(min(pipeline.topics), 0)
    columns = Columns([value], [None], [None], [int(now_ms)], [0], [source])
    if pipeline.costly:
        pipeline.cost(value)
    batch = Batch(None, range(1), columns, pipeline, time.monotonic_ns(), now_ms)
    pool = InlinePool(Engine())
    pool.submit(batch)
    (back,) = pool.collect()
    if back.error is not None:
        raise back.error
    assert batch.outcomes is not None
    for rejection in batch.outcomes.rejected.values():
        raise Reject(f"{rejection.stage}: {rejection.message}", rejection.reason)
    body = batch.outcomes.bodies[0] or b""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body


def check_broker(settings: Settings) -> list[tuple[str, str]]:
    """What the broker says of the topics: (name of the check, sentence).

    Raises:
        WorkerError: unreachable, not authorised, or a topic is missing.
    """
    from worker.kafka.topics import open_topics

    topics = open_topics(settings, make=False)
    return [("broker", topics.broker), ("topics", topics.describe()), ("limits", topics.describe_limits())]


# -- the worker ----------------------------------------------------------------------------------------


def build(settings: Settings, index: int) -> App:
    """Load the models, connect to Kafka and start the watchers; what ``App.run`` turns.

    Args:
        index: which replica this is; its HTTP port is the configured one plus this.

    Raises:
        WorkerError: a model, a topic, a right or a port is missing.
    """
    from worker.kafka.properties import check_properties

    check_properties(
        settings.kafka
    )  # before a large model is loaded: a misspelt property is the likelier mistake
    loaded = load(settings)
    runtime.loaded()
    return App(settings, loaded, index)


class App:
    """One worker: its Kafka clients, its loop, and what watches the loop."""

    def __init__(self, settings: Settings, loaded: Loaded, index: int) -> None:
        self._settings = settings
        self._meters = Meters(
            {
                name: ModelLabel(p.model.name, p.model.version, p.model.provider)
                for name, p in loaded.pipelines.items()
            }
        )
        self._vitals = Vitals(self._meters, settings.limits.stall_s)
        self._connect()
        self._build_loop(loaded)
        self._vitals.attach(self._conductor, self._source, self._pool)
        self._watch(index)

    def _connect(self) -> None:
        from worker.kafka.batch_sink import open_sink
        from worker.kafka.properties import client_id
        from worker.kafka.sink import MetricsProducer
        from worker.kafka.source import KafkaSource
        from worker.kafka.topics import open_topics

        settings, meters = self._settings, self._meters
        self._topics = open_topics(settings)
        self._info = WorkerInfo(
            client_id(settings), settings.kafka["group.id"], socket.gethostname(), os.getpid(), __version__
        )
        self._metrics = MetricsProducer(settings) if settings.metrics.topic else None
        self._source = KafkaSource(settings, self._topics.embedded, lambda: meters.rewind("out_of_range"))
        exactly_once = settings.delivery == "exactly_once"
        if exactly_once and self._topics.embedded:
            log.warning(
                "the embedded broker forgets the offsets that a transaction commits: after a restart or a "
                "rebalance everything is read again; delivery: exactly_once needs a real Kafka"
            )
        # each process has an id of its own: a restart must not abort the transaction of a replica that still runs
        transactional_id = f"{self._info.group}-{uuid.uuid4()}" if exactly_once else None
        self._sink = open_sink(settings, self._topics, transactional_id)

    def _build_loop(self, loaded: Loaded) -> None:
        settings, limits = self._settings, self._settings.limits
        routes = list(loaded.pipelines.values())
        engine = Engine()
        self._pool = (
            ThreadPool(engine, loaded.threads, loaded.runs, loaded.ahead)
            if loaded.threads
            else InlinePool(engine)
        )
        # an upper bound of the records of one partition that a dying process had in flight
        caution = Caution(2 * loaded.slab_records, settings.dead_letter.max_crashes)
        self._conductor = Conductor(
            Plan(
                settings.name,
                loaded.slab_records,
                min(route.max_wait_s for route in routes),
                limits.drain_s,
                limits.revoke_s,
                max(route.item_nbytes for route in routes),
                # a transaction holds whole slabs: publishing parts of one early gains nothing
                ordered=settings.order == "partition" or settings.delivery == "exactly_once",
            ),
            self._source,
            self._pool,
            Window(limits.in_flight_bytes),
            Admission(routes, limits.max_age_ms, limits.expired, limits.in_flight_bytes),
            self._outbox(),
            self._sink,
            self._delivery(caution),
            self._meters,
            log,
            caution,
            on_turn=self._rounds(),
        )

    def _outbox(self) -> Outbox:
        letters = self._settings.dead_letter
        head = Letterhead(letters.topic, self._info.id, self._settings.name, logs.redact, self._keeps_time)
        return Outbox(self._sink, head, DeadLetterRate(letters.stop_after.ratio, letters.stop_after.of_last))

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
            from worker.kafka.topics import TopicWatch

            chores.append(every(TOPICS_EVERY_S, self._unless_draining(TopicWatch(self._settings).look)))
        self._reporter = self._make_reporter()
        if self._reporter is not None:
            chores.append(Chore(self._reporter.due_s, self._report))
        return Rounds(chores, time.monotonic)

    def _unless_draining(self, do: Callable[[], None]) -> Callable[[], None]:
        return lambda: None if self._conductor.draining else do()

    def _watch(self, index: int) -> None:
        limits, conductor = self._settings.limits, self._conductor
        awake = AwakeClock(time.monotonic)
        progress = Progress(limits.stall_s, self._vitals.progress, awake)
        self._vitals.watch(progress.standing)
        address = self._settings.metrics.http
        self._http = HttpServer(address, self._vitals, self._info, index) if address else None
        checks = [
            DrainDeadline(
                limits.drain_s, lambda: conductor.stop_requested and not conductor.draining, awake
            ).stuck,
            BatchDeadline(limits.batch_timeout_s, self._pool.oldest, _interrupt, awake).stuck,
            Standstill(limits.stall_s, lambda: conductor.turned_ns, awake).stuck,
            progress.stuck,
        ]
        self._watchdog = Watchdog(checks, self._vitals.state, log.error, awake)

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
        self._conductor.run()

    def ask_to_stop(self) -> None:
        """Drain soon; for a signal handler or another thread."""
        self._conductor.stop_requested = True
        self._look.due_s = 0.0  # the last look at the ends, for the last metrics

    def give_up(self) -> None:
        """Leave the consumer group without a drain."""
        self._conductor.close(2.0)

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


def _interrupt(batch: Batch) -> None:
    """Stop the model runs of a batch that is past its time; its records are then tried one by one."""
    log.warning("batch past its time", pipeline=batch.pipeline.name, records=len(batch))
    batch.pipeline.model.interrupt()
