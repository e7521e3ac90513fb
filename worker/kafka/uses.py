"""Which topics a configuration names, and what each is used for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from worker.kafka.clusters import clusters_of
from worker.topics import is_pattern, matches

if TYPE_CHECKING:
    from worker.settings import CreateSettings, Settings

log = structlog.get_logger(module=__name__)


@dataclass(frozen=True)
class Use:
    """One topic and what it is used for."""

    topic: str
    field: str
    """The setting that names the topic; empty if the command line names it."""
    written: bool
    create: CreateSettings | None = None
    cluster: str = ""
    """The setting that names the cluster of its topic; empty: that of ``kafka``."""
    control: bool = False
    """It has one partition and is compacted."""

    @property
    def partitions(self) -> int:
        """Of the topic when it is created."""
        assert self.create is not None
        return 1 if self.control else self.create.partitions

    @property
    def prefix(self) -> str:
        """The beginning of a message about the topic."""
        return f"{self.field}: " if self.field else ""


def expanded(uses: Iterable[Use], topics: Iterable[str]) -> Iterator[Use]:
    """The uses with the topics that exist in place of patterns; a warning where a pattern matches none."""
    there = sorted(topics)
    for use in uses:
        if not is_pattern(use.topic):
            yield use
            continue
        found = [topic for topic in there if matches(use.topic, topic)]
        if not found:
            log.warning(
                "no topic matches yet: those that are made later are read",
                setting=use.field,
                pattern=use.topic,
            )
        yield from (replace(use, topic=topic) for topic in found)


def uses_of(settings: Settings) -> Iterator[Use]:
    """Every topic that the worker reads or writes, with the setting that names it."""
    alone = len(settings.pipelines) == 1
    create = None
    elsewhere = clusters_of(settings)
    for name, pipeline in settings.pipelines.items():
        prefix = "" if alone else f"pipelines.{name}."
        for topic in pipeline.input.topics:
            yield Use(topic, f"{prefix}input.topics", written=False)
        create = create or pipeline.output.create
        cluster = next((each.section for each in elsewhere if pipeline.output.topic in each.topics), "")
        yield Use(pipeline.output.topic, f"{prefix}output.topic", True, pipeline.output.create, cluster)
        if pipeline.rollout is not None and pipeline.rollout.topic is not None:
            yield Use(pipeline.rollout.topic, f"{prefix}rollout.topic", True, pipeline.output.create)
    yield Use(settings.dead_letter.topic, "dead_letter.topic", True, create)
    if settings.metrics.topic:
        yield Use(settings.metrics.topic, "metrics.topic", True, create)
    if settings.control is not None:
        for written in (False, True):
            yield Use(settings.control.topic, "control.topic", written, create, control=True)
