"""The metrics record: one JSON object per process and interval, for the metrics topic and ``/progressz``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, get_args

import orjson

from worker.errors import Reason
from worker.telemetry.histogram import Histogram
from worker.telemetry.meters import PipelineCounts, Snapshot
from worker.telemetry.part_counts import VersionCounts


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """The process that sends a metrics record; ``id`` is its client.id, the record's key."""

    id: str
    group: str
    host: str
    pid: int
    version: str


def metrics_record(
    snapshot: Snapshot, worker: WorkerInfo, waits: str | None = None, minute: Snapshot | None = None
) -> bytes:
    """The metrics record of a snapshot as JSON; its counters cover the snapshot's ``interval_s``.

    Args:
        waits: what the worker waits for, if that is unusual; the record then has a field ``waits``.
        minute: a snapshot of the last minute; the record then has a field ``last_minute`` with what can be counted.
    """
    record = metrics_fields(snapshot, worker)
    if minute is not None:
        counted = metrics_fields(minute, worker)
        record["last_minute"] = {
            name: counted[name] for name in ("interval_s", "pipelines", "bytes", "process", "loop_ratio")
        }
    if waits is not None:
        record["waits"] = waits
    return orjson.dumps(record)


def metrics_fields(snapshot: Snapshot, worker: WorkerInfo) -> dict[str, Any]:
    """The fields of a metrics record."""
    interval_s = snapshot.interval_s
    return {
        "type": "streaminfer.metrics",
        "schema": 1,
        "time_ms": snapshot.time_ms,
        "interval_s": round(interval_s, 3),
        "worker": asdict(worker),
        "pipelines": {name: pipeline_fields(counts) for name, counts in snapshot.pipelines.items()},
        "bytes": {"in": snapshot.bytes_in, "out": snapshot.bytes_out, "in_flight": snapshot.bytes_in_flight},
        "process": {"cpu_s": round(snapshot.cpu_s, 3), "rss_bytes": snapshot.rss_bytes},
        "partitions": {
            f"{partition.topic}/{partition.number}": {
                "position": state.position,
                "committed": state.committed,
                "end": state.end,
                "lag": state.lag,
            }
            for partition, state in snapshot.partitions.items()
        },
        "loop_ratio": {
            section: round(spent_s / interval_s, 4) if interval_s > 0 else 0.0
            for section, spent_s in snapshot.loop_s.items()
        },
    }


class MetricsReporter:
    """Sends the metrics record of each interval; the caller supplies the snapshots.

    Args:
        send: takes key and value, for instance a producer's method with the metrics topic bound.
        first: the snapshot at which the first interval begins.
    """

    def __init__(
        self, worker: WorkerInfo, interval_s: float, send: Callable[[bytes, bytes], None], first: Snapshot
    ) -> None:
        self._worker = worker
        self._interval_s = interval_s
        self._send = send
        self._last = first

    @property
    def due_s(self) -> float:
        """When the next record is due, on the clock of the snapshots."""
        return self._last.clock_s + self._interval_s

    def report(self, snapshot: Snapshot) -> None:
        """Send the counts since the last report. At the end of a drain this is called even if no record is due."""
        self._send(self._worker.id.encode(), metrics_record(snapshot.since(self._last), self._worker))
        self._last = snapshot


def pipeline_fields(counts: PipelineCounts) -> dict[str, Any]:
    """What a metrics record says of one pipeline."""
    model = counts.model._asdict() if counts.model else {"name": "", "version": "", "provider": ""}
    errors: dict[str, int] = dict.fromkeys(get_args(Reason), 0)
    for (reason, _stage), records in counts.errors.items():
        errors[reason] = errors.get(reason, 0) + records
    steps = {
        name: {"items": step.items, "batches": step.runs, "latency_ms": latency_ms(step.us)}
        for name, step in counts.steps.items()
    }
    record = {
        "model": model,
        **({"steps": steps} if steps else {}),
        "records": {
            "in": counts.taken,
            "out": counts.ok,
            "dead_letter": counts.dead_letter,
            "dropped": counts.dropped,
        },
        "items": counts.items,
        "batches": counts.batches,
        "mean_batch": round(counts.items / counts.batches, 3) if counts.batches else 0.0,
        "latency_ms": {stage: latency_ms(histogram) for stage, histogram in counts.stages_us.items()},
        "errors": errors,
    }
    if counts.cache:
        record["cache"] = dict(counts.cache)
    if counts.drift:
        record["drift"] = {feature: round(psi, 4) for feature, psi in counts.drift.items()}
    if len(counts.versions) > 1:
        record["versions"] = {version: _version(its) for version, its in counts.versions.items()}
    return record


def _version(counts: VersionCounts) -> dict[str, Any]:
    """The part of one model version."""
    return {
        "records": {"out": counts.ok, "dead_letter": counts.dead_letter},
        "items": counts.items,
        "batches": counts.batches,
        "infer_ms": latency_ms(counts.infer_us),
    }


def latency_ms(us: Histogram) -> dict[str, float]:
    """How long something took, in milliseconds: count, percentiles and maximum."""
    p50, p90, p99, p999 = us.percentiles(0.5, 0.9, 0.99, 0.999)
    return {
        "count": us.count,
        "p50": p50 / 1000,
        "p90": p90 / 1000,
        "p99": p99 / 1000,
        "p999": p999 / 1000,
        "max": us.max / 1000,
    }
