"""What a search of ``bench`` hears of the group meanwhile, and the capacity that comes of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from worker.bench.capacity import document_of
from worker.bench.usage import Listener, Usage
from worker.cli.connect import connection
from worker.errors import WorkerError
from worker.settings import Settings
from worker.telemetry import logs

if TYPE_CHECKING:
    from worker.bench.load import Load
    from worker.bench.search import Found

LEAST_SHARE = 0.25
"""Workers that take less than this part of a machine's processors do not fill it."""
PATIENCE_S = 2.0
"""Beyond one interval of the metrics, so long is waited for what the last windows have taken."""


class Measured:
    """Listens to the metrics topic during a search; a context manager.

    Args:
        pipeline: which one gets the load.
        values: the records that are sent.
    """

    def __init__(self, settings: Settings, pipeline: str, values: Sequence[bytes]) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._sizes = [len(value) for value in values]
        self._listener: Listener | None = None

    def __enter__(self) -> Measured:
        topic = self._settings.metrics.topic
        if topic is not None:
            from worker.kafka.tools import TopicReader

            try:
                client = connection("streaminfer-bench", None, [], self._settings)
                reader = TopicReader(client, [topic], "latest")
                self._listener = Listener(self._settings.kafka["group.id"], reader)
            except WorkerError as error:  # the search is worth something without it
                logs.say(f"bench: what the replicas take is not known: {error}")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._listener is not None:
            self._listener.__exit__(*exception)

    def doubted(self, found: Found) -> Found:
        """What was found; without a rate where workers and load generator seem to fill the machine, and the workers do not.

        Then something else fills it.
        """
        if not found.full or found.best is None:
            return found
        usage = self._usage(found.best.wanted_per_s)
        if usage is None or usage.cpu_us_per_record is None or set(usage.hosts) != {platform.node()}:
            return found
        cores = usage.cpu_us_per_record * found.best.wanted_per_s / 1e6
        if cores >= LEAST_SHARE * len(os.sched_getaffinity(0)):
            return found
        why = f"at {found.best.wanted_per_s:,.0f} records/s the workers take {cores:.2f} processors, and records are late all the same"
        return replace(found, best=None, p99_ms=(0.0, 0.0), generator_limited=False, noisy=why)

    def _usage(self, per_s: float) -> Usage | None:
        if self._listener is None:
            return None
        self._listener.next(self._settings.metrics.interval_s + PATIENCE_S)
        return self._listener.usage(per_s)

    def document(self, found: Found, p99_ms: float, group: Load) -> dict[str, Any] | None:
        """What ``capacity.json`` says; None where the search told no rate."""
        if found.best is None:
            return None
        usage = self._usage(found.best.wanted_per_s)
        members = None
        if usage is None:
            from worker.kafka.measuring import members_with

            members = members_with(self._settings, self._settings.pipelines[self._pipeline].input.topics[0])
        return document_of(
            self._settings,
            self._pipeline,
            p99_ms,
            found.best,
            found.p99_ms,
            usage,
            (sum(self._sizes) / len(self._sizes), max(self._sizes)),
            group.result_bytes,
            group.model,
            group.partitions,
            members,
            found.generator_limited,
        )
