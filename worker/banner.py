"""What the first log line of a worker says: what it reads from where, where answers go, and what runs."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from worker import __version__, native
from worker.settings import Settings
from worker.settings.current import DIGITS
from worker.telemetry.topic import WorkerInfo


def banner(
    settings: Settings,
    info: WorkerInfo,
    partitions: Mapping[str, int],
    compiled_producer: bool,
    url: str | None,
) -> dict[str, Any]:
    """The fields of the event ``started``.

    Args:
        partitions: by topic their number, as far as it is known.
        compiled_producer: whether the compiled path sends the results.
        url: of the page; None without ``metrics.http``.
    """
    pipelines = settings.pipelines.values()
    topics = sorted({topic for each in pipelines for topic in each.input.topics})
    limits = settings.limits
    return {
        "reads": [_topic(topic, partitions) for topic in topics],
        "brokers": settings.kafka["bootstrap.servers"],
        "group": info.group,
        "writes": sorted({each.output.topic for each in pipelines}),
        "dead_letters": settings.dead_letter.topic,
        "metrics": url,
        "config": settings.origins.file or None,
        "digest": settings.origins.digest[:DIGITS] if settings.origins.files else None,
        "client_id": info.id,
        "pipelines": len(settings.pipelines),
        "delivery": settings.delivery,
        "batch_path": native.batch_path,
        "producer": "compiled" if compiled_producer else "python",
        "in_flight_bytes": limits.in_flight_bytes,
        "version": __version__,
        "python": platform.python_version(),
        **_versions(),
    }


def _topic(topic: str, partitions: Mapping[str, int]) -> str:
    known = partitions.get(topic)
    return topic if known is None else f"{topic} ({known} partition{'s' * (known != 1)})"


def _versions() -> dict[str, str]:
    """Versions that a bug report needs."""
    found = {}
    for field, packages in (
        ("onnxruntime", ("onnxruntime", "onnxruntime-gpu")),
        ("kafka_client", ("confluent-kafka",)),
    ):
        for package in packages:
            try:
                found[field] = version(package)
            except PackageNotFoundError:
                continue
            break
    return found
