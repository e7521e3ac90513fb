"""Who keeps to the settings that may change while the worker runs, and is told when they do.

On the loop's thread, between two slabs. The pool's threads and the watchdog read single numbers, which change at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.loop.exactly_once import ExactlyOnce
from worker.loop.limit import DeadLetterRate
from worker.settings import LimitsSettings, Settings
from worker.settings.sections import DeadLetterSettings

if TYPE_CHECKING:
    from worker.loop.conductor import Conductor
    from worker.process.progress import Progress
    from worker.process.watchdog import BatchDeadline, DrainDeadline, Outage, Standstill
    from worker.serving.engine import Engine
    from worker.telemetry.vitals import Vitals
    from worker.tracing import TraceParts

RETRY_SHARE = 0.75
"""Most of ``limits.stall_s`` for which custom code may hold a record: the watchdog must not take that for a stall."""


def retry_s(limits: LimitsSettings) -> float:
    """How long custom code may have a record tried again, in seconds."""
    return min(limits.retry_s, RETRY_SHARE * limits.stall_s)


def dead_letter_rate(settings: DeadLetterSettings) -> DeadLetterRate:
    """When the worker stops because too many records are bad."""
    return DeadLetterRate(*_judged_by(settings))


def _judged_by(settings: DeadLetterSettings) -> tuple[float | None, int]:
    stop = settings.stop_after
    return (None, 1) if stop == "off" else (stop.ratio, stop.of_last)


@dataclass(frozen=True, slots=True)
class Watched:
    """The ways to be stuck that have a limit."""

    draining: DrainDeadline
    batch: BatchDeadline
    turning: Standstill
    outage: Outage
    progress: Progress

    @property
    def all(self) -> Sequence[DrainDeadline | BatchDeadline | Standstill | Outage | Progress]:
        """In the order in which they are asked."""
        return self.draining, self.batch, self.turning, self.outage, self.progress


@dataclass(frozen=True, slots=True)
class InForce:
    """See the module."""

    conductor: Conductor
    engine: Engine
    vitals: Vitals
    watched: Watched
    traces: TraceParts | None = None
    """Where records are traced."""

    def follow(self, settings: Settings) -> None:
        """Keep to these settings from now on."""
        limits, parts = settings.limits, self.conductor.parts
        membership = self.conductor.membership
        membership.drain_s, membership.revoke_s = limits.drain_s, limits.revoke_s
        wait_s = {name: each.batching.max_wait_ms / 1000 for name, each in settings.pipelines.items()}
        for intake in parts.intakes:
            intake.admission.max_age_ms, intake.admission.expired = limits.max_age_ms, limits.expired
            intake.wait_at_most(wait_s)
        parts.outbox.limit.judge_by(*_judged_by(settings.dead_letter))
        parts.isolation.caution.max_crashes = settings.dead_letter.max_crashes
        if isinstance(parts.delivery, ExactlyOnce):
            bounds = settings.transaction
            parts.delivery.bound(bounds.max_ms / 1000, bounds.max_records, limits.revoke_s)
        self.engine.retry_s = retry_s(limits)
        self._watch(limits)
        if self.traces is not None:
            self.traces.follow(settings)

    def _watch(self, limits: LimitsSettings) -> None:
        watched = self.watched
        watched.draining.drain_s = limits.drain_s
        watched.batch.timeout_s = limits.batch_timeout_s
        watched.turning.stall_s = watched.progress.stall_s = self.vitals.stall_s = limits.stall_s
        watched.outage.outage_s = limits.outage_s
