"""A snapshot as Prometheus text: latencies in seconds, every metric of `names.py` and nothing else of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from worker.telemetry import logs, names
from worker.telemetry.configured import RESULTS
from worker.telemetry.histogram import BATCH_EDGES, LATENCY_EDGES_US, Histogram
from worker.telemetry.meters import PipelineCounts, Snapshot
from worker.telemetry.part_counts import VersionCounts

CONTENT_TYPE = CONTENT_TYPE_LATEST

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Sample = tuple[names.Metric, tuple[str, ...], float | Histogram]


class Exposition:
    """Renders the text of ``/metrics``, each time from a fresh snapshot."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_SnapshotCollector(snapshot))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        return generate_latest(self._registry)


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Family]:
        families: dict[names.Metric, Any] = {metric: _family(metric) for metric in names.METRICS}
        for metric, labels, value in _samples(self._snapshot()):
            if isinstance(value, Histogram):
                buckets, total = _buckets(metric, value)
                families[metric].add_metric(labels, buckets, total)
            else:
                families[metric].add_metric(labels, value)
        return families.values()


def _samples(snapshot: Snapshot) -> Iterator[Sample]:
    for pipeline, counts in snapshot.pipelines.items():
        yield names.RECORDS_IN, (pipeline,), counts.taken
        yield names.RECORDS, (pipeline, "dropped", ""), counts.dropped
        yield names.SKIPPED, (pipeline,), counts.skipped
        yield names.RECORDS_IN_FLIGHT, (pipeline,), counts.in_flight
        yield from _by_version(pipeline, counts)
        yield names.BATCH_SIZE, (pipeline,), counts.batch_size
        yield names.TRUNCATED, (pipeline,), counts.truncated
        for result, records in counts.cache.items():
            yield names.CACHE, (pipeline, result), records
        if counts.run_items:
            yield names.RUN_ITEMS, (pipeline,), counts.run_items
        for stage, histogram in counts.stages_us.items():
            if stage != "infer":
                yield names.STAGE_DURATION, (pipeline, stage, ""), histogram
        for step, done in counts.steps.items():
            yield names.STEP_ITEMS, (pipeline, step), done.items
            yield names.STEP_RUNS, (pipeline, step), done.runs
            yield names.STEP_DURATION, (pipeline, step), done.us
        if counts.model:
            yield names.MODEL_INFO, (pipeline, *counts.model), 1
            yield names.MODEL_SWAPS, (pipeline,), counts.swaps
        for reason, versions in counts.refused.items():
            yield names.MODEL_REFUSED, (pipeline, reason), versions
        for what, rollouts in counts.rollouts.items():
            yield names.ROLLOUTS, (pipeline, what), rollouts
        if counts.rollouts:
            yield names.ROLLOUT_SHARE, (pipeline,), counts.rollout_share
        for feature, psi in counts.drift.items():
            yield names.DRIFT, (pipeline, feature), psi
        if counts.drift_measured:
            yield names.DRIFT_MEASURED, (pipeline,), counts.drift_measured
    yield names.IN_FLIGHT_BYTES, (), snapshot.bytes_in_flight
    for partition, state in snapshot.partitions.items():
        if state.lag is not None:
            yield names.CONSUMER_LAG, (partition.topic, str(partition.number)), state.lag
            yield names.LAG_AGE, (partition.topic, str(partition.number)), state.age_s
        if state.drain_s is not None:
            yield names.SECONDS_TO_DRAIN, (partition.topic, str(partition.number)), state.drain_s
    yield names.REBALANCES, (), snapshot.rebalances
    for result, transactions in snapshot.transactions.items():
        yield names.TRANSACTIONS, (result,), transactions
    for cause, rewinds in snapshot.rewinds.items():
        yield names.REWINDS, (cause,), rewinds
    if snapshot.configured.digest:
        yield names.CONFIG_INFO, (snapshot.configured.digest,), 1
    for result in RESULTS:
        yield names.CONFIG_RELOADS, (result,), snapshot.configured.reloads[result]
    yield names.CONFIG_NEEDS_RESTART, (), len(snapshot.configured.restart)
    yield names.ASSIGNED_PARTITIONS, (), snapshot.kafka.assigned
    yield names.BROKER_AVAILABLE, (), snapshot.kafka.available
    yield names.OUTSIDE_AVAILABLE, (), snapshot.kafka.outside
    yield names.KAFKA_THROTTLED, (), snapshot.kafka.throttled_s
    for code, errors in snapshot.kafka.errors.items():
        yield names.KAFKA_ERRORS, (code,), errors
    for outcome, spans in snapshot.spans.items():
        yield names.SPANS, (outcome,), spans
    yield names.LOG_LINES_DROPPED, (), logs.dropped_lines()


def _by_version(pipeline: str, counts: PipelineCounts) -> Iterator[Sample]:
    """What model versions did, and under an empty version what none of those that are still counted alone did."""
    rest = VersionCounts(
        counts.ok,
        counts.dead_letter,
        counts.items,
        counts.batches,
        counts.errors,
        counts.stages_us["infer"],
    )
    for its in counts.versions.values():
        rest = rest.since(its)
    for version, its in [*counts.versions.items(), ("", rest)]:
        if not version and counts.versions and rest.idle:
            continue
        yield names.RECORDS, (pipeline, "ok", version), its.ok
        yield names.RECORDS, (pipeline, "dead_letter", version), its.dead_letter
        yield names.ITEMS, (pipeline, version), its.items
        yield names.BATCHES, (pipeline, version), its.batches
        yield names.STAGE_DURATION, (pipeline, "infer", version), its.infer_us
        for (reason, stage), records in its.errors.items():
            yield names.ERRORS, (pipeline, reason, stage, version), records


def _family(metric: names.Metric) -> Family:
    name = names.PREFIX + metric.name
    match metric.kind:
        case "counter":
            return CounterMetricFamily(name, metric.help, labels=metric.labels)
        case "gauge":
            return GaugeMetricFamily(name, metric.help, labels=metric.labels)
        case "histogram":
            return HistogramMetricFamily(name, metric.help, labels=metric.labels)


def _buckets(metric: names.Metric, histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets by upper edge, and the sum of all values, in the metric's unit."""
    edges, per_unit = (LATENCY_EDGES_US, 1_000_000) if metric.unit == "seconds" else (BATCH_EDGES, 1)
    uppers = [str(edge / per_unit) for edge in edges]
    buckets: list[tuple[str, float]] = list(zip(uppers, histogram.cumulative(edges), strict=True))
    return [*buckets, ("+Inf", histogram.count)], histogram.sum / per_unit
