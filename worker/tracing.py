"""What traces records in a worker, put together: settings and environment, the collector, the exporter, the tracer."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from worker import __version__
from worker.settings import Settings
from worker.settings.tracing import Tracing, tracing_of
from worker.telemetry import logs
from worker.telemetry.collector import Collector
from worker.telemetry.span_exporter import SpanExporter, Unsent
from worker.telemetry.spans import Attributes
from worker.telemetry.topic import WorkerInfo
from worker.telemetry.traced import Here
from worker.telemetry.tracer import RecordTracer


class TraceParts:
    """Traces records from its construction until `close`.

    Args:
        tracing: how.

    Raises:
        ConfigError: a certificate cannot be used.
    """

    def __init__(self, settings: Settings, tracing: Tracing, info: WorkerInfo) -> None:
        collector = Collector(tracing, resource(settings, tracing, info))
        self._exporter = SpanExporter(collector, tracing.url)
        self.counts = self._exporter.counts
        here = Here(
            info.group,
            info.id,
            settings.name,
            settings.dead_letter.topic,
            settings.encryption is None,
            logs.redact,
        )
        self.tracer = RecordTracer(tracing, self._exporter, here)

    def follow(self, settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
        """Choose records as these settings say; on the loop's thread."""
        tracing = tracing_of(settings.tracing, environ)
        if tracing is not None:
            self.tracer.follow(tracing)

    def close(self, budget_s: float) -> None:
        """Send the spans that wait, so long at most."""
        self._exporter.close(budget_s)


def trace_parts(
    settings: Settings, info: WorkerInfo, environ: Mapping[str, str] = os.environ
) -> TraceParts | None:
    """What traces records; None where nothing is to be traced.

    Raises:
        ConfigError: an `OTEL_*` variable cannot be followed, or a certificate cannot be used.
    """
    tracing = tracing_of(settings.tracing, environ)
    return TraceParts(settings, tracing, info) if tracing is not None else None


def resource(settings: Settings, tracing: Tracing, info: WorkerInfo) -> Attributes:
    """What the spans say of this process; what the environment gives comes before our own."""
    ours: dict[str, str | int] = {
        "service.name": settings.name,
        "service.version": __version__,
        "service.instance.id": info.id,
        "host.name": info.host,
        "process.pid": info.pid,
        "process.runtime.name": platform.python_implementation().lower(),
        "telemetry.sdk.name": "streaminfer",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": __version__,
    }
    return [*{**ours, **tracing.resource}.items()]


def described(settings: Settings, offline: bool, environ: Mapping[str, str] = os.environ) -> str:
    """What ``check`` says of traces: where spans go, of which records, and, unless offline, whether somebody takes them.

    A collector that is away is no failure: records go on without it.

    Raises:
        ConfigError: as :func:`trace_parts`.
    """
    tracing = tracing_of(settings.tracing, environ)
    if tracing is None:
        return "off, by the environment (OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER or OTEL_TRACES_SAMPLER)"
    which = "all records" if tracing.everything else "records with a sampled traceparent"
    if tracing.ratio and not tracing.everything:
        which += f" and {100 * tracing.ratio:.4g} % of those without one"
    said = f"{which}, at most {tracing.max_per_s}/s, to {tracing.url} ({tracing.protocol})"
    collector = Collector(tracing, [])
    if offline:
        return said
    try:
        collector.send([])
    except Unsent as error:
        return f"{said}; that collector does not take them now ({error}), records would go on without spans"
    finally:
        collector.close()
    return f"{said}; that collector answers"
