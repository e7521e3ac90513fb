"""The composition root: the only file that names every concrete class and sets process-wide switches.

``load_pipelines`` makes pipelines of settings, ``run`` puts them between a Kafka source and sink; ``answer`` and
``check_broker`` are the same objects without the loop, for ``check``.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import orjson

from worker import __version__, native
from worker.batch import Batch, Columns, Partition
from worker.errors import Reject, WorkerError
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
from worker.process.watchdog import AwakeClock, BatchDeadline, DrainDeadline, Progress, Standstill, Watchdog
from worker.serving.engine import Engine, Pipeline
from worker.settings import PipelineSettings, Settings, check_budget, check_model_file, labels_of
from worker.telemetry import logs
from worker.telemetry.exchange import SnapshotExchange
from worker.telemetry.http import Health, HttpServer
from worker.telemetry.meters import Meters, ModelLabel, PartitionState, Snapshot
from worker.telemetry.topic import MetricsReporter, WorkerInfo

if TYPE_CHECKING:
    from worker.kafka.source import Reach

SWITCH_INTERVAL_S = 0.0002
"""The interpreter's default of 5 ms lets one busy thread hold up a 50 us model run a hundredfold."""
COLLECT_EVERY = 50_000
"""Objects more than before at which cycles are looked for. The default of 700 goes through all the records in
flight several times a slab, 8 % of the CPU of small ones, and finds nothing: a record is never in a cycle."""
TUNING_S = 5.0
"""Most time all ``auto`` measurements of a process take together."""
WARM_BYTES = 64 << 20
"""Made-up warm-up batches never take more than this."""
SLAB_WORK_S = 0.004
SLAB_RECORDS_MAX = 2048
"""A slab holds several runs of a fast model, about this much work: what is done per slab is then shared."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's parameters."""
KEPT_BYTES, LARGE_BLOCK_BYTES = 64 << 20, 16 << 20
COMMIT_INTERVAL_S = 0.5
LAGS_EVERY_S = 1.0

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
        one_shape=wanted.input.format == "image" and wanted.preprocess.one_size,
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
    # what own code takes is not known: it must not stand in the way of the loop, nor of a drain
    own_code = wanted.postprocess.own is not None or ":" in wanted.input.format
    threads = max(1, tuning.threads) if own_code and wanted.model.threads == "auto" else tuning.threads
    slab = pipeline.max_size if own_code else _slab_records(pipeline)
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
    chosen = settings.postprocess.classification or settings.postprocess.detection
    return labels_of(chosen.labels) if chosen and chosen.labels else None


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


def run(settings: Settings, index: int | None = None) -> int:
    """One worker process, from the settings to a drained exit.

    Args:
        index: which replica this is, when there are several.

    Raises:
        WorkerError: see its exit code.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _settle_allocator()
    gc.set_threshold(COLLECT_EVERY)
    if index is not None and "client.id" in settings.kafka:
        named = {**settings.kafka, "client.id": f"{settings.kafka['client.id']}-{index}"}
        settings = settings.model_copy(update={"kafka": named})
    stop = _Stop()
    from worker.kafka.properties import check_properties

    check_properties(settings.kafka)  # a misspelt one is said before a large model is loaded
    loaded = load(settings)
    gc.freeze()  # what is there by now stays for good
    return _Process(settings, loaded, index or 0, stop).run()


def _settle_allocator() -> None:
    """Blocks of up to 16 MiB are taken from freed memory, of which up to 64 MiB are kept; larger ones go back at once.

    glibc comes to such values by itself, or to others, depending on what happens to be freed first: it raises the size from
    which a block goes back with each one that does, up to 32 MB, and what it keeps to twice that. What the client fetches
    arrives in blocks of some MB. Where each of those goes back, the next one's pages are made anew: 1 MiB cost 1.1 times
    the CPU for JSON records and 3 times for raw frames of 150 KB. Frames of 8 MB and more that stay as holes are inside the
    bound (``scripts/bench memory``). Another allocator or C library takes no notice.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


class _Stop:
    """SIGTERM and SIGINT: the first drains, the second stops now."""

    def __init__(self) -> None:
        self.requested: Callable[[], None] | None = None
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        if self.requested is not None:
            self.requested()


def _interrupt(batch: Batch) -> None:
    """Tell the runs of this batch's model to stop; a record that cannot be answered in time is told apart then."""
    log.warning("batch past its time", pipeline=batch.pipeline.name, records=len(batch))
    batch.pipeline.model.interrupt()


class _Process:
    """Everything one running worker is made of; also what its HTTP server shows."""

    def __init__(self, settings: Settings, loaded: Loaded, index: int, stop: _Stop) -> None:
        from worker.kafka.batch_sink import BatchSink, open_sink
        from worker.kafka.properties import client_id
        from worker.kafka.sink import MetricsProducer
        from worker.kafka.source import KafkaSource
        from worker.kafka.topics import TopicWatch, open_topics

        self._settings = settings
        self._stop = stop
        limits = settings.limits
        routes = list(loaded.pipelines.values())
        self._topics = open_topics(settings)
        self.info = WorkerInfo(
            client_id(settings), settings.kafka["group.id"], socket.gethostname(), os.getpid(), __version__
        )
        self._meters = Meters(
            {p.name: ModelLabel(p.model.name, p.model.version, p.model.provider) for p in routes}
        )
        first = self._meters.snapshot()
        self._exchange = SnapshotExchange(first)
        self._metrics = MetricsProducer(settings) if settings.metrics.topic else None
        self._reporter = self._make_reporter(first)
        self._next_report_s = self._reporter.due_s if self._reporter else float("inf")
        self._source = KafkaSource(
            settings, self._topics.embedded, lambda: self._meters.rewind("out_of_range")
        )
        exactly_once = settings.delivery == "exactly_once"
        if exactly_once and self._topics.embedded:
            log.warning(
                "the embedded broker forgets the positions that a transaction commits: after a restart or a "
                "rebalance everything is read again; delivery: exactly_once needs a real Kafka"
            )
        # an id of its own per process: a restart aborts nothing of a replica that still runs
        transactional_id = f"{self.info.group}-{uuid.uuid4()}" if exactly_once else None
        self._sink = open_sink(settings, self._topics, transactional_id)
        self._sends_batches = isinstance(self._sink, BatchSink)
        window = Window(limits.in_flight_bytes)
        engine = Engine()
        self._pool = (
            ThreadPool(engine, loaded.threads, loaded.runs, loaded.ahead)
            if loaded.threads
            else InlinePool(engine)
        )
        # what a process that dies may have had in flight of one partition, generously
        caution = Caution(2 * loaded.slab_records, settings.dead_letter.max_crashes)
        stop_after = settings.dead_letter.stop_after
        self._conductor = Conductor(
            Plan(
                settings.name,
                loaded.slab_records,
                min(route.max_wait_s for route in routes),
                limits.drain_s,
                limits.revoke_s,
                max(route.item_nbytes for route in routes),
                # a slab must be whole in one transaction: there is nothing to gain from publishing parts of it
                ordered=settings.order == "partition" or exactly_once,
            ),
            self._source,
            self._pool,
            window,
            Admission(routes, limits.max_age_ms, limits.expired, limits.in_flight_bytes),
            Outbox(
                self._sink,
                Letterhead(
                    settings.dead_letter.topic, self.info.id, settings.name, logs.redact, self._keeps_time
                ),
                DeadLetterRate(stop_after.ratio, stop_after.of_last),
            ),
            self._sink,
            self._delivery(caution),
            self._meters,
            log,
            caution,
            on_turn=self._on_turn,
        )
        self._topic_watch = None if self._topics.embedded else TopicWatch(settings)
        self._next_lags_s = 0.0
        self._reach: dict[Partition, Reach] = {}
        awake = AwakeClock(time.monotonic)
        self._progress = Progress(limits.stall_s, self._read_progress, awake)
        self._turning = Standstill(limits.stall_s, lambda: self._conductor.turned_ns, awake)
        # it asks for all of the above: whoever probes before is refused, as during the warm-up
        self._http = (
            HttpServer(settings.metrics.http, self, self.info, index) if settings.metrics.http else None
        )
        deadline = BatchDeadline(limits.batch_timeout_s, self._pool.oldest, _interrupt, awake)
        draining = DrainDeadline(
            limits.drain_s,
            lambda: self._conductor.stop_requested and not self._conductor.draining,
            awake,
        )
        checks = [draining.stuck, deadline.stuck, self._turning.stuck, self._progress.stuck]
        self._watchdog = Watchdog(checks, self._state, log.error, awake)

    def run(self) -> int:
        """Turn the conductor until it has drained."""
        log.info(
            "started",
            client_id=self.info.id,
            group=self.info.group,
            pipelines=len(self._settings.pipelines),
            delivery=self._settings.delivery,
            batch_path=native.batch_path,
            producer="compiled" if self._sends_batches else "python",
        )
        self._stop.requested = self._ask_to_stop
        # a parent may hand its signal mask down, and building a client blocks all signals for a moment
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        if self._stop.asked:
            self._ask_to_stop()
        try:
            self._conductor.run()
            return 0
        except WorkerError:
            self._conductor.close(2.0)
            raise
        finally:
            self._leave()

    def _ask_to_stop(self) -> None:
        self._conductor.stop_requested = True
        self._next_lags_s = 0.0

    def _leave(self) -> None:
        """Say the last numbers and let go of the clients, within a few seconds whatever the broker does."""
        self._watchdog.close()
        last = self._snapshot()
        if self._reporter is not None and self._metrics is not None:
            self._reporter.report(last)
            self._metrics.close(2.0)
        counts = last.pipelines.values()
        log.info(
            "counted",
            client_id=self.info.id,
            taken=sum(count.taken for count in counts),
            ok=sum(count.ok for count in counts),
            dead_letter=sum(count.dead_letter for count in counts),
            dropped=sum(count.dropped for count in counts),
            in_flight=sum(count.in_flight for count in counts),
        )
        self._sink.close(2.0)
        if self._http is not None:
            self._http.close()

    def _keeps_time(self, timestamp_ms: int) -> bool:
        """Whether the dead-letter topic takes a record of this timestamp and keeps it."""
        times = self._topics.times.get(self._settings.dead_letter.topic)
        return times is None or times.keeps(timestamp_ms, time.time() * 1000)

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

    # -- telemetry ---------------------------------------------------------------------------------------

    def health(self) -> Health:
        """See :class:`worker.telemetry.http.Provider`."""
        conductor = self._conductor
        alive = self._idle_s() < self._settings.limits.stall_s and self._source.fatal is None
        # a loop that is busy with a batch has not begun to drain when it is asked to
        draining = conductor.draining or conductor.stop_requested
        ready = alive and conductor.joined and not draining
        detail = {"turned_s_ago": round(self._idle_s(), 3), "draining": draining}
        return Health(alive, ready, alive and self._progress.standing() is None, detail)

    def _idle_s(self) -> float:
        return (time.monotonic_ns() - self._conductor.turned_ns) / 1e9

    def _read_progress(self) -> tuple[Mapping[Partition, tuple[int | None, int | None]], int, bool]:
        seen = {p: (reach.position + reach.unreadable, reach.end) for p, reach in self._reach.items()}
        return seen, self._meters.settled_records, self._conductor.paused

    def _state(self) -> dict[str, Any]:
        """What a stuck process knows of itself, read without its help."""
        conductor = self._conductor
        return {
            "turned_s_ago": round(self._idle_s(), 1),
            "paused": conductor.paused,
            "draining": conductor.draining,
            "slabs_in_flight": conductor.window.slabs,
            "bytes_in_flight": conductor.window.bytes,
            "records_in_flight": conductor.window.records,
            "batches_in_pool": self._pool.outstanding,
            "partitions": {f"{p.topic}/{p.number}": reach[:2] for p, reach in self._reach.items()},
        }

    def snapshot(self) -> Snapshot:
        """See :class:`worker.telemetry.http.Provider`."""
        return self._exchange.ask()

    def _make_reporter(self, first: Snapshot) -> MetricsReporter | None:
        topic, producer = self._settings.metrics.topic, self._metrics
        if topic is None or producer is None:
            return None
        return MetricsReporter(
            self.info,
            self._settings.metrics.interval_s,
            lambda key, value: producer.send(topic, key, value),
            first,
        )

    def _on_turn(self) -> None:
        now = time.monotonic()
        if now >= self._next_lags_s:
            self._reach = self._source.lag()
            self._next_lags_s = now + LAGS_EVERY_S
        if self._topic_watch is not None and not self._conductor.draining:
            self._topic_watch.look()
        if self._exchange.wanted:
            self._exchange.answer(self._snapshot())
        if self._reporter is not None and now >= self._next_report_s:
            self._reporter.report(self._snapshot())
            self._next_report_s = self._reporter.due_s

    def _snapshot(self) -> Snapshot:
        window = self._conductor.window
        reached = (
            self._source.lag() or self._reach
        )  # the last words of a drain come after the source is let go
        partitions = {}
        for partition, reach in reached.items():
            position = window.position(partition)
            if position is None:
                position = reach.start  # nothing was settled yet
            partitions[partition] = PartitionState(
                position,
                window.committed_position(partition),
                reach.end if reach.end >= 0 else None,
                reach.unreadable if position == reach.position else 0,
            )
        return self._meters.snapshot(window.bytes, partitions)
