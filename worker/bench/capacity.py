"""``capacity.json``: what a search found, for :mod:`worker.bench.plan` to count with."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from worker import __version__
from worker.bench.trial import Trial
from worker.bench.usage import Usage
from worker.errors import ConfigError
from worker.filesystem import read_bytes
from worker.settings import Settings

TYPE = "streaminfer.capacity"
SCHEMA = 1
FILE = "capacity.json"
HOW = "make it on a group that is like the one you plan: streaminfer bench CONFIG --search --p99-ms M --source FILE"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica was found to keep."""

    records_per_s: float
    """Of one replica, at ``p99_ms``."""
    p99_ms: float
    """The bound of the search."""
    found_p99_ms: float
    """The highest 99th percentile of the windows at that rate."""
    end_to_end_ms: dict[str, float]
    """Percentiles from the intended send to the result that was read."""
    total_ms: dict[str, float]
    """Percentiles of the results' own ``latency_ms.total``; empty where results carry none."""
    broker_ms: dict[str, float]
    infer_ms: dict[str, float]
    cpu_us_per_record: float | None
    cores: int | None
    """Of the machine of the replicas; None where it is another one than that of the search."""
    replicas: int
    """That the search met; ``records_per_s`` is their rate divided by them."""
    rss_bytes: int | None
    record_bytes: float
    result_bytes: float
    generator_limited: bool
    pipeline: str
    model: str | None
    """``name@version``."""
    digest: str
    time: str


def document_of(
    settings: Settings,
    pipeline: str,
    p99_ms: float,
    best: Trial,
    p99_range_ms: tuple[float, float],
    usage: Usage | None,
    record_bytes: tuple[float, int],
    result_bytes: float,
    model: dict[str, str] | None,
    partitions: int,
    members: int | None,
    generator_limited: bool,
) -> dict[str, Any]:
    """The document for a search that found a rate.

    Args:
        p99_range_ms: lowest and highest 99th percentile of the windows at that rate.
        usage: None where no metrics topic tells of it.
        record_bytes: mean and largest of the records that were sent.
        partitions: of the input topic.
        members: of the group, as the broker says; it counts without ``usage``, and without either one is assumed.
    """
    replicas = usage.replicas if usage is not None else members or 1
    here = usage is None or set(usage.hosts) == {platform.node()}
    cpu = usage.cpu_us_per_record if usage is not None else None
    return {
        "type": TYPE,
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "pipeline": pipeline,
        "p99_ms": p99_ms,
        "records_per_s": round(best.wanted_per_s / replicas, 3),
        "group": {
            "records_per_s": best.wanted_per_s,
            "replicas": replicas,
            "replicas_known": usage is not None or members is not None,
            "partitions": partitions,
        },
        "found_p99_ms": {"lowest": round(p99_range_ms[0], 3), "highest": round(p99_range_ms[1], 3)},
        "latency_ms": best.document()["latency_ms"],
        "stages_ms": best.document()["stages_ms"],
        "cpu_us_per_record": round(cpu, 3) if cpu is not None else None,
        "rss_bytes": usage.rss_bytes if usage is not None else None,
        "record_bytes": {"mean": round(record_bytes[0], 1), "largest": record_bytes[1]},
        "result_bytes": {"mean": round(result_bytes, 1)},
        "generator_limited": generator_limited,
        "machine": {
            "host": platform.node() if here else ", ".join(usage.hosts if usage is not None else ()),
            "cores": len(os.sched_getaffinity(0)) if here else None,
            "cpu": _cpu_name() if here else None,
            "system": f"{platform.system()} {platform.release()}" if here else None,
        },
        "model": model,
        "config": {"name": settings.name, "digest": digest_of(settings, pipeline)},
        "streaminfer": __version__,
    }


def digest_of(settings: Settings, pipeline: str) -> str:
    """Of the settings that decide how fast a pipeline is: 16 hex digits of a SHA-256. Topics and places do not count."""
    plain = settings.redacted()
    part = plain["pipelines"][pipeline]
    for section, keys in {
        "input": ("topics", "start"),
        "output": ("topic", "create"),
        "model": ("path", "repository", "store_options", "cache", "version", "sha256", "golden", "poll_s"),
    }.items():
        for key in keys:
            if part.get(section):
                part[section].pop(key, None)
    counted = {
        "pipeline": part,
        **{key: plain[key] for key in ("delivery", "order", "transaction", "limits")},
    }
    text = orjson.dumps(counted, option=orjson.OPT_SORT_KEYS, default=str).decode()
    text = text.replace(f"{settings.base}{os.sep}", "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_capacity(path: Path) -> Capacity:
    """The document in a file.

    Raises:
        ConfigError: it is missing, or nothing that a search wrote.
    """
    try:
        found = orjson.loads(read_bytes(path))
    except FileNotFoundError:
        raise ConfigError(f"--capacity: {path} does not exist; {HOW}") from None
    except OSError as error:
        raise ConfigError(f"--capacity: {path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError:
        raise ConfigError(f"--capacity: {path} is not JSON; {HOW}") from None
    if not isinstance(found, dict) or found.get("type") != TYPE or found.get("schema") != SCHEMA:
        raise ConfigError(f"--capacity: {path} is no {TYPE} of schema {SCHEMA}; {HOW}")
    try:
        return _capacity(found)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"--capacity: {path} lacks a figure or has a wrong one ({error}); {HOW}") from None


def _capacity(found: dict[str, Any]) -> Capacity:
    model, stages = found["model"], found["stages_ms"]
    cpu = found["cpu_us_per_record"]
    capacity = Capacity(
        records_per_s=float(found["records_per_s"]),
        p99_ms=float(found["p99_ms"]),
        found_p99_ms=float(found["found_p99_ms"]["highest"]),
        end_to_end_ms={name: float(value) for name, value in found["latency_ms"].items()},
        total_ms={name: float(value) for name, value in stages.get("total", {}).items()},
        broker_ms={name: float(value) for name, value in stages.get("broker", {}).items()},
        infer_ms={name: float(value) for name, value in stages.get("infer", {}).items()},
        cpu_us_per_record=float(cpu) if cpu is not None else None,
        cores=found["machine"]["cores"],
        replicas=int(found["group"]["replicas"]),
        rss_bytes=found["rss_bytes"],
        record_bytes=float(found["record_bytes"]["mean"]),
        result_bytes=float(found["result_bytes"]["mean"]),
        generator_limited=bool(found["generator_limited"]),
        pipeline=str(found["pipeline"]),
        model=f"{model['name']}@{model['version']}" if model else None,
        digest=str(found["config"]["digest"]),
        time=str(found["time"]),
    )
    if not capacity.records_per_s > 0 or not capacity.p99_ms > 0:
        raise ValueError("records_per_s and p99_ms are above 0")
    return capacity


def _cpu_name() -> str | None:
    """The processor's own name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None
