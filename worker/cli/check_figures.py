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
    terms = " + ".join(f"{name} {_mib(size)}" for name, size in parts.items())
    return f"warm process + {_mib(sum(parts.values()))} MiB = {terms}"


def figures(settings: Settings) -> Iterator[tuple[str, str]]:
    """The name and the message of each further line; none where everything is as it is by default."""
    priorities = {name: pipeline.priority for name, pipeline in settings.pipelines.items()}
    if len({*priorities.values()}) > 1:
        ranked = sorted(priorities.items(), key=lambda each: -each[1])
        yield "priority", ", ".join(f"{name} {priority}" for name, priority in ranked)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}".removesuffix(".0")
