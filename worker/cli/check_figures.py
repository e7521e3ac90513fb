"""What ``check`` says of figures that need no model: the bound on memory, and what pipelines have of one another."""

from __future__ import annotations

from collections.abc import Iterator

from worker.settings import MIB, Settings


def memory(settings: Settings) -> str:
    """The bound on memory beyond that of a warm process, with its parts."""
    limits, largest = settings.limits, settings.largest_record()
    parts = {
        "in_flight_bytes": limits.in_flight_bytes,
        "prefetch_bytes": limits.prefetch_bytes,
        "output_bytes": limits.output_bytes,
        "largest record": largest,
    }
    kept = sum(each.cache.bytes for each in settings.pipelines.values() if each.cache is not None)
    if kept:
        parts["cache"] = kept
    terms = " + ".join(f"{name} {_mib(size)}" for name, size in parts.items())
    return f"warm process + {_mib(sum(parts.values()))} MiB = {terms}"


def figures(settings: Settings) -> Iterator[tuple[str, str]]:
    """The name and the message of each further line; none where everything is as it is by default."""
    priorities = {name: pipeline.priority for name, pipeline in settings.pipelines.items()}
    if len({*priorities.values()}) > 1:
        ranked = sorted(priorities.items(), key=lambda each: -each[1])
        yield "priority", ", ".join(f"{name} {priority}" for name, priority in ranked)
    for name, pipeline in settings.pipelines.items():
        if (devices := pipeline.model.devices) is not None:
            at_once = 1 if pipeline.model.instances == "auto" else pipeline.model.instances
            numbers = ", ".join(map(str, devices))
            yield (
                "devices",
                f"{name}: the whole model on each of {numbers}, {at_once} run{'s'[: at_once > 1]} at once on each",
            )
        if pipeline.cache is not None:
            age = "of any age" if pipeline.cache.ttl_s is None else f"for {pipeline.cache.ttl_s:g} s"
            kept = _mib(pipeline.cache.bytes)
            yield "cache", f"{name}: equal payloads are answered from memory, {age}, up to {kept} MiB"


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}".removesuffix(".0")
