"""The parts of one worker, put together: its Kafka clients, and the loop between them.

With :mod:`worker.app` this is all that names concrete classes. Nothing here runs; see :mod:`worker.process.worker` for that.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from worker.batch import Partition, Route
from worker.errors import Rejection
from worker.in_force import dead_letter_rate
from worker.loop.accounts import Accounts
from worker.loop.admission import Admission
from worker.loop.at_least_once import AtLeastOnce
from worker.loop.budget import Budget, Share
from worker.loop.caution import Caution, Note
from worker.loop.conductor import Conductor
from worker.loop.delivery import Delivery
from worker.loop.exactly_once import ExactlyOnce
from worker.loop.fetching import Fetching
from worker.loop.intake import Intake
from worker.loop.intakes import Intakes, groups
from worker.loop.io_threads import IoThreads
from worker.loop.isolation import Isolation
from worker.loop.membership import Parts
from worker.loop.outbox import Letterhead, Outbox, ToldLetter
from worker.loop.pool import InlinePool, Mailbox, ThreadPool
from worker.loop.series import Rules
from worker.loop.series_source import SeriesSource
from worker.loop.storing import Storing
from worker.loop.tasks import spawn
from worker.loop.tracing import Tracer
from worker.loop.window import Window
from worker.outside import Outside
from worker.records.windowed import SampleReader, WindowedDecoder
from worker.serving.engine import Engine
from worker.serving.rollout import Rollout
from worker.settings import Settings
from worker.telemetry import logs
from worker.telemetry.meters import Meters
from worker.telemetry.observer import Observer
from worker.topics import ByTopic

if TYPE_CHECKING:
    from worker.kafka.batch_sink import BatchSink
    from worker.kafka.several_sinks import SeveralSinks
    from worker.kafka.shadow_results import ShadowResults
    from worker.kafka.share_source import ShareSource
    from worker.kafka.sink import KafkaSink, MetricsProducer, Outputs
    from worker.kafka.source import KafkaSource
    from worker.kafka.topics import Topics

COMMIT_INTERVAL_S = 0.5

log = logs.get("worker")

AnyPool = ThreadPool | InlinePool | Storing


@dataclass(frozen=True, slots=True)
class Clients:
    """What a worker has of Kafka."""

    topics: Topics
    source: KafkaSource | ShareSource
    sink: KafkaSink | BatchSink | SeveralSinks
    metrics: MetricsProducer | None
    """None without a metrics topic."""


def connect(settings: Settings, meters: Meters, group: str) -> Clients:
    """Connect to Kafka.

    Args:
        group: the consumer group, with which a transactional id begins.

    Raises:
        WorkerError: the broker is away or refuses a right; a topic is missing.
    """
    from worker.kafka.sink import MetricsProducer
    from worker.kafka.source import open_source
    from worker.kafka.topics import open_topics

    topics = open_topics(settings)
    metrics = MetricsProducer(settings) if settings.metrics.topic else None
    source: KafkaSource | ShareSource
    if settings.delivery == "queue":
        from worker.kafka.share_group import check_kind, prepare_group
        from worker.kafka.share_source import open_share_source

        check_kind(topics.embedded)
        source = open_share_source(settings, prepare_group(settings))
    else:
        source = open_source(
            settings,
            topics.embedded,
            topics.ids,
            lambda: meters.rewind("out_of_range"),
            lambda metadata: Note.parse(metadata) is not None,
            topics.partitions,
        )
    exactly_once = settings.delivery == "exactly_once"
    if exactly_once and topics.embedded:
        log.warning("the embedded broker forgets the offsets that a transaction commits")
    # Each process has an id of its own: a restart must not abort the transaction of a replica that still runs.
    transactional_id = f"{group}-{uuid.uuid4()}" if exactly_once else None
    return Clients(topics, source, _open_sinks(settings, topics, transactional_id), metrics)


def _open_sinks(
    settings: Settings, topics: Topics, transactional_id: str | None
) -> KafkaSink | BatchSink | SeveralSinks:
    """The sink of results and dead letters: of one cluster, or of several where ``output.kafka`` names another."""
    from worker.kafka.batch_sink import open_sink
    from worker.kafka.clusters import clusters_of
    from worker.kafka.several_sinks import SeveralSinks
    from worker.kafka.topics import open_elsewhere

    there = open_elsewhere(settings, topics)
    home = open_sink(settings, topics, transactional_id)
    if not there:
        return home
    elsewhere: dict[str, KafkaSink | BatchSink] = {}
    for cluster in clusters_of(settings):
        sink = open_sink(cluster.settings, there[cluster.section])
        elsewhere |= dict.fromkeys(cluster.topics, sink)
    return SeveralSinks(home, elsewhere)


def shadow_results(settings: Settings, rollouts: Iterable[Rollout]) -> ShadowResults | None:
    """Who sends what shadows answer, told to the rollouts; None where nobody wants it."""
    topics = {
        name: wanted.rollout.topic
        for name, wanted in settings.pipelines.items()
        if wanted.rollout is not None and wanted.rollout.topic is not None
    }
    if not topics:
        return None
    from worker.kafka.shadow_results import open_shadow_results

    results = open_shadow_results(settings)
    for rollout in rollouts:
        if (topic := topics.get(rollout.route.name)) is not None:
            rollout.publish = partial(results.publish, topic)
    return results


def pool_for(engine: Engine, rollouts: list[Rollout]) -> AnyPool:
    """The one pool of a process: as many threads as its pipelines ask for at most, a lane for each servable."""
    servables = [rollout.choose() for rollout in rollouts]
    threads, lanes = max(servable.threads for servable in servables), [s.lane for s in servables]
    mailbox = Mailbox()
    pool = ThreadPool(engine, threads, lanes, mailbox) if threads else InlinePool(engine, mailbox)
    at_once = max((offload.concurrency for r in rollouts if (offload := r.route.offload)), default=0)
    return Storing(pool, IoThreads(at_once, pool.nudge), at_once, log) if at_once else pool


def conductor_for(
    settings: Settings,
    rollouts: list[Rollout],
    clients: Clients,
    pool: AnyPool,
    meters: Meters,
    task_id: str,
    on_turn: Callable[[], None],
    observers: Sequence[Observer] = (),
    on_letter: ToldLetter | None = None,
    tracer: Tracer | None = None,
) -> Conductor:
    """The main loop with all its parts.

    Args:
        task_id: the client id, which every dead letter names.
        on_turn: called once per turn.
        observers: told what happens to records, after the meters.
        on_letter: told of each dead letter.
        tracer: told of records that leave; None: none is traced.
    """
    limits = settings.limits
    parted, window = groups(rollouts), Window()
    for_records = bytes_for_records(limits.in_flight_bytes, rollouts)
    budget = Budget(for_records, len(parted))
    outside: dict[Route, Sequence[Outside]] = {each.route: each.route.outside for each in rollouts}
    intakes = [
        Intake(
            Admission(group, limits.max_age_ms, limits.expired, for_records),
            share,
            alone=len(parted) == 1,
            fetching=_fetching(outside, [member.route for member in group], share, pool),
        )
        for group, share in zip(parted, budget.shares, strict=True)
    ]
    source = _source(settings, rollouts, clients, intakes)
    caution = _caution(settings, intakes)
    parts = Parts(
        source,
        Intakes(intakes, source),
        budget,
        window,
        _outbox(settings, clients, task_id, on_letter, tracer),
        clients.sink,
        _delivery(settings, clients, source, meters, caution),
        Isolation(caution, source, window),
        Accounts([meters, *observers], settings.name, tracer=tracer),
        log,
        time.monotonic_ns,
    )
    return Conductor(
        parts,
        pool,
        limits.drain_s,
        limits.revoke_s,
        # A transaction holds whole slabs: publishing parts of one early gains nothing.
        ordered=settings.order == "partition" or settings.delivery == "exactly_once",
        on_turn=on_turn,
    )


def bytes_for_records(in_flight_bytes: int, rollouts: Iterable[Rollout]) -> int:
    """What records in flight may take together: all but what runs of later steps need, however many records there are."""
    return in_flight_bytes - sum(rollout.stable.reserve_bytes for rollout in rollouts)


def _caution(settings: Settings, intakes: list[Intake]) -> Caution:
    """What is known of records that may have ended a process before."""
    # An upper bound of the records of one partition that a dying process had in flight.
    reach = ByTopic({topic: 2 * intake.slab_records for intake in intakes for topic in intake.topics})
    return Caution(reach, settings.dead_letter.max_crashes)


def _fetching(
    outside: Mapping[Route, Sequence[Outside]], group: Iterable[Route], share: Share, pool: AnyPool
) -> Fetching | None:
    """Where records of these routes get what they need from outside; None where none needs anything."""
    needed = {route: outside[route] for route in group if outside[route]}
    if not needed:
        return None
    threads = max(each.concurrency for chain in needed.values() for each in chain)
    calls = IoThreads(threads, pool.nudge)
    return Fetching(needed, calls, share, log, time.monotonic_ns, lambda: time.time() * 1000)


def _outbox(
    settings: Settings,
    clients: Clients,
    task_id: str,
    on_letter: ToldLetter | None,
    tracer: Tracer | None,
) -> Outbox:
    letters = settings.dead_letter
    head = Letterhead(
        letters.topic,
        task_id,
        settings.name,
        logs.redact,
        clients.topics.keeping(letters.topic),
        settings.delivery == "exactly_once",
        _told(clients.source, on_letter),
    )
    return Outbox(clients.sink, head, dead_letter_rate(letters), tracer)


def told_to(*listeners: ToldLetter) -> ToldLetter:
    """One that passes each dead letter on to all of these."""

    def told(pipeline: str, model: str | None, partition: Partition, offset: int, why: Rejection) -> None:
        for listener in listeners:
            listener(pipeline, model, partition, offset, why)

    return told


def _told(source: KafkaSource | ShareSource, on_letter: ToldLetter | None) -> ToldLetter | None:
    """Who hears of a dead letter; a share group hears that its record is rejected."""
    reject = getattr(source, "reject", None)
    if reject is None:
        return on_letter

    def told(pipeline: str, model: str | None, place: Partition, offset: int, why: Rejection) -> None:
        reject(place, offset)
        if on_letter is not None:
            on_letter(pipeline, model, place, offset, why)

    return told


def _source(
    settings: Settings, rollouts: list[Rollout], clients: Clients, intakes: list[Intake]
) -> KafkaSource | ShareSource | SeriesSource:
    """What the loop takes records from: the client, or windows over its records where a pipeline asks for them."""
    by_route = {rollout.route.name: rollout for rollout in rollouts}
    readers: dict[str, tuple[SampleReader, Rules]] = {}
    for name, pipeline in settings.pipelines.items():
        wanted, decoder = pipeline.input.window, by_route[name].choose().decoder
        if wanted is not None and isinstance(decoder, WindowedDecoder):
            rules = Rules(wanted.size, wanted.hop or wanted.size, wanted.keys, wanted.within)
            reader = SampleReader(decoder.samples, decoder.sample, wanted.by, pipeline.input.max_bytes)
            readers |= dict.fromkeys(pipeline.input.topics, (reader, rules))
    if not readers:
        return clients.source
    client = cast("KafkaSource", clients.source)  # a share group goes with no windows
    claims = {
        topic: intake.share.claim() for intake in intakes for topic in intake.topics if topic in readers
    }
    most_bytes = settings.limits.in_flight_bytes // (4 * len(readers))
    return SeriesSource(client, readers, claims, most_bytes, client.committed, log)


def _delivery(
    settings: Settings,
    clients: Clients,
    source: KafkaSource | ShareSource | SeriesSource,
    meters: Meters,
    caution: Caution,
) -> Delivery:
    sink = clients.sink
    if settings.delivery == "queue":  # records that are not answered for cannot be followed by others
        return AtLeastOnce(source, sink, 0.0, time.monotonic_ns)
    if settings.delivery == "at_least_once":
        return AtLeastOnce(source, sink, COMMIT_INTERVAL_S, time.monotonic_ns, caution.metadata)

    def annotate(positions: dict[Partition, int]) -> dict[Partition, str]:
        notes = caution.metadata(positions)
        return source.annotated(positions, notes) if isinstance(source, SeriesSource) else notes

    from worker.kafka.transactions import KafkaTransactions

    return ExactlyOnce(
        KafkaTransactions(cast("KafkaSource", clients.source), cast("Outputs[Any]", sink)),
        settings.transaction.max_ms / 1000,
        settings.transaction.max_records,
        settings.limits.revoke_s,
        time.monotonic_ns,
        meters.transaction,
        spawn,
        annotate,
    )
