"""``/state``: everything the page shows, as plain data. Pure: it puts together what others know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from worker.telemetry.drain import drain_fields
from worker.telemetry.histogram import BATCH_EDGES
from worker.telemetry.history import STACKED, merged
from worker.telemetry.meters import PipelineCounts, Snapshot
from worker.telemetry.routes import Health
from worker.telemetry.topic import WorkerInfo, latency_ms, metrics_fields, pipeline_fields


@dataclass(frozen=True, slots=True)
class About:
    """What of a worker does not change while it runs."""

    worker: WorkerInfo
    inputs: Mapping[str, list[str]]
    """Input topics by pipeline."""
    outputs: Mapping[str, str]
    """Output topic by pipeline."""
    dead_letters: str
    """The topic of dead letters."""
    metrics: str | None
    """The metrics topic, if one is named."""
    brokers: str
    """``kafka.bootstrap.servers``"""
    interval_s: float
    """Of the metrics topic."""
    in_flight_bytes: int
    """``limits.in_flight_bytes``"""
    beside_bytes: int
    """What the process may take beyond what it takes when it is warm: the sum that ``check`` prints."""
    samples: int
    """``page.samples``"""


def state(
    about: About,
    health: Health,
    second: Snapshot,
    minute: Snapshot,
    whole: Snapshot,
    warm_bytes: int | None,
) -> dict[str, Any]:
    """The state of this worker.

    Args:
        second, minute, whole: one moment, with counters of the last second, of the last minute, and since the start.
        warm_bytes: resident memory once the models were warm; None before.
    """
    record = metrics_fields(second, about.worker)
    return {
        "type": "streaminfer.state",
        "schema": 1,
        "time_ms": whole.time_ms,
        "uptime_s": round(whole.interval_s, 1),
        "worker": record["worker"],
        "health": {
            "state": _word(health),
            "alive": health.alive,
            "ready": health.ready,
            "progressing": health.progressing,
            "broker": whole.kafka.available,
            "waits": health.waits,
            "reason": None,
            **health.detail,
        },
        "about": {key: value for key, value in asdict(about).items() if key != "worker"},
        "last_second": {"interval_s": record["interval_s"], "pipelines": record["pipelines"]},
        "last_minute": _counted(minute),
        "since_start": _counted(whole),
        "partitions": _partitions(second),
        "memory": {
            "rss_bytes": second.rss_bytes,
            "rss_bound_bytes": None if warm_bytes is None else warm_bytes + about.beside_bytes,
            "warm_rss_bytes": warm_bytes,
            "in_flight_bytes": second.bytes_in_flight,
            "in_flight_limit_bytes": about.in_flight_bytes,
        },
        "cpu": _cpu(minute),
        "loop_ratio": metrics_fields(minute, about.worker)["loop_ratio"],
        "kafka": {
            "assigned": whole.kafka.assigned,
            "rebalances": whole.rebalances,
            "errors": dict(whole.kafka.errors),
            "transactions": dict(whole.transactions),
            "rewinds": dict(whole.rewinds),
        },
        "configuration": whole.configured.fields(),
        "models": {
            name: _model(counts) for name, counts in whole.pipelines.items() if counts.model is not None
        },
    }


def _word(health: Health) -> str:
    """The health in one word, for a headline."""
    if not health.alive:
        return "stuck"
    if health.detail.get("draining"):
        return "draining"
    if not health.ready:
        return "warming up" if health.detail.get("reason") == "warming up" else "not ready"
    if not health.progressing:
        return "stalled"
    return "waiting" if health.waits else "ready"


def _counted(snapshot: Snapshot) -> dict[str, Any]:
    """The counters of a stretch of time, with what a metrics record leaves out."""
    return {
        "interval_s": round(snapshot.interval_s, 3),
        "latency_ms": {stage: latency_ms(merged(snapshot, stage)) for stage in (*STACKED, "total")},
        "pipelines": {
            name: {
                **pipeline_fields(counts),
                "failures": _failures(counts.errors),
                "batch_sizes": _batch_sizes(counts),
            }
            for name, counts in snapshot.pipelines.items()
        },
    }


def _failures(errors: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    """Failed records by reason and stage, most first."""
    return [
        {"reason": reason, "stage": stage, "records": records}
        for (reason, stage), records in errors.most_common()
        if records
    ]


def _batch_sizes(counts: PipelineCounts) -> dict[str, int]:
    """Batches by size: each number counts those above the size before it, up to its own."""
    upto = [*counts.batch_size.cumulative(BATCH_EDGES), counts.batch_size.count]
    names = [*map(str, BATCH_EDGES), "more"]
    each = zip(names, upto, [0, *upto], strict=False)
    return {name: here - before for name, here, before in each if here > before}


def _partitions(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    found: Iterable[Any] = sorted(snapshot.partitions.items())
    return {
        f"{partition.topic}/{partition.number}": {
            "position": each.position,
            "committed": each.committed,
            "end": each.end,
            "lag": each.lag,
            **drain_fields(each.drain_s),
        }
        for partition, each in found
    }


def _cpu(snapshot: Snapshot) -> float | None:
    """Processor cores in use."""
    return round(snapshot.cpu_s / snapshot.interval_s, 3) if snapshot.interval_s > 0 else None


def _model(counts: PipelineCounts) -> dict[str, Any]:
    assert counts.model is not None
    return {
        **counts.model._asdict(),
        "swaps": counts.swaps,
        "refused": dict(counts.refused),
        "rollouts": dict(counts.rollouts),
    }
