"""What records may take beside the warm process: the sum that ``check`` shows."""

from __future__ import annotations

from worker.settings.sections import Settings
from worker.settings.tracing import WAITING_BYTES


def memory_parts(settings: Settings) -> dict[str, int]:
    """What records may take beside the warm process, in bytes, by the limit that bounds it."""
    limits = settings.limits
    parts = {
        "in_flight_bytes": limits.in_flight_bytes,
        "prefetch_bytes": limits.prefetch_bytes,
        "output_bytes": limits.output_bytes,
        "largest record": settings.largest_record(),
    }
    kept = sum(each.cache.bytes for each in settings.pipelines.values() if each.cache is not None)
    if kept:
        parts["cache"] = kept
    if settings.tracing is not None:
        parts["spans"] = WAITING_BYTES
    return parts


def memory_bound(settings: Settings) -> int:
    """The sum of :func:`memory_parts`."""
    return sum(memory_parts(settings).values())
