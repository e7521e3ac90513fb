"""Clusters besides that of ``kafka``: where ``output.kafka`` sends results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.settings import Settings


@dataclass(frozen=True)
class Cluster:
    """A cluster that results are sent to; pipelines with equal properties share it."""

    section: str
    """The setting that names it; the first one where several do."""
    settings: Settings
    """The worker's settings with the properties of this cluster's clients under ``kafka``."""
    topics: frozenset[str]
    """Topics for results there."""


def clusters_of(settings: Settings) -> list[Cluster]:
    """Every other cluster, in the order of the pipelines."""
    found: dict[tuple[tuple[str, str], ...], Cluster] = {}
    for name, pipeline in settings.pipelines.items():
        properties = pipeline.output.kafka
        if properties is None:
            continue
        key = tuple(sorted(properties.items()))
        own = {"client.id": settings.kafka["client.id"]} if "client.id" in settings.kafka else {}
        known = found.get(key)
        found[key] = Cluster(
            known.section if known else settings.key(name, "output.kafka"),
            known.settings if known else settings.model_copy(update={"kafka": {**own, **properties}}),
            (known.topics if known else frozenset()) | {pipeline.output.topic},
        )
    return list(found.values())
