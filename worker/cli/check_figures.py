"""What ``check`` says of figures: the bound on memory, and what pipelines have of one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from worker.settings import MIB, Settings, memory_parts
from worker.settings.rollout import RolloutSettings
from worker.settings.sections import ModelSettings


def memory(configured: Settings, took: Mapping[str, int]) -> str:
    """The bound on memory beyond that of a warm process, with its parts.

    Args:
        configured: not yet with the files of a version.
        took: the memory in bytes that the load of each pipeline's model took, where it was loaded.
    """
    parts = memory_parts(configured)
    for name, pipeline in configured.pipelines.items():
        if pipeline.model.repository is not None:  # a new version is loaded beside the one that answers
            given = pipeline.model.swap_bytes
            parts[f"model.swap_bytes of {name}"] = took.get(name, 0) if given == "auto" else given
    terms = " + ".join(f"{name} {_mib(size)}" for name, size in parts.items())
    return f"warm process + {_mib(sum(parts.values()))} MiB = {terms}"


def figures(settings: Settings) -> Iterator[tuple[str, str]]:
    """The name and the message of each further line; none where everything is as it is by default."""
    priorities = {name: pipeline.priority for name, pipeline in settings.pipelines.items()}
    if len({*priorities.values()}) > 1:
        ranked = sorted(priorities.items(), key=lambda each: -each[1])
        yield "priority", ", ".join(f"{name} {priority}" for name, priority in ranked)
    for name, pipeline in settings.pipelines.items():
        for prefix, part in pipeline.parts.items():
            if part.model.devices is not None:
                yield (
                    "devices",
                    f"{name}: {prefix.removesuffix('.')}{': ' if prefix else ''}{_devices(part.model)}",
                )
        if pipeline.cache is not None:
            age = "of any age" if pipeline.cache.ttl_s is None else f"for {pipeline.cache.ttl_s:g} s"
            kept = _mib(pipeline.cache.bytes)
            yield "cache", f"{name}: equal payloads are answered from memory, {age}, up to {kept} MiB"
        if pipeline.rollout is not None:
            yield "rollout", f"{name}: {_rollout(pipeline.rollout)}"
    if settings.page.samples:
        yield "page", f"shows the last {settings.page.samples} results with their pictures, up to 16 MiB"


def _rollout(rollout: RolloutSettings) -> str:
    share = f"a new version answers {100 * rollout.share:g} % of the keys first"
    how = share if rollout.mode == "canary" else "a new version runs beside the one that answers"
    after = f"after {rollout.min_records:,} records and {rollout.for_s:g} s"
    then = f"is promoted {after}" if rollout.then == "promote" else f"waits {after} for `streaminfer model`"
    return f"{how}; within its limits it {then}"


def _devices(model: ModelSettings) -> str:
    at_once = 1 if model.instances == "auto" else model.instances
    numbers = ", ".join(map(str, model.devices or ()))
    return f"the whole model on each of {numbers}, {at_once} run{'s'[: at_once > 1]} at once on each"


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}".removesuffix(".0")
