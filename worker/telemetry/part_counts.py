"""The parts of a pipeline's counts that are one model version's own, or one step's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from worker.telemetry.histogram import Histogram


@dataclass(slots=True)
class VersionCounts:
    """What one model version did for a pipeline."""

    ok: int = 0
    dead_letter: int = 0
    items: int = 0
    batches: int = 0
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Failed records by (reason, stage)."""
    infer_us: Histogram = field(default_factory=Histogram)

    @property
    def idle(self) -> bool:
        """Whether nothing is counted."""
        return not (self.ok or self.dead_letter or self.items or self.batches or self.errors)

    def copy(self) -> VersionCounts:
        return replace(self, errors=self.errors.copy(), infer_us=self.infer_us.copy())

    def since(self, earlier: VersionCounts) -> VersionCounts:
        return VersionCounts(
            self.ok - earlier.ok,
            self.dead_letter - earlier.dead_letter,
            self.items - earlier.items,
            self.batches - earlier.batches,
            self.errors - earlier.errors,
            self.infer_us.since(earlier.infer_us),
        )


@dataclass(slots=True)
class StepCounts:
    """Counts of one step of a pipeline that has several models."""

    items: int = 0
    runs: int = 0
    """Model runs."""
    us: Histogram = field(default_factory=Histogram)
    """Per record the microseconds that its batch spent in the step."""

    def copy(self) -> StepCounts:
        return replace(self, us=self.us.copy())

    def since(self, earlier: StepCounts) -> StepCounts:
        return StepCounts(self.items - earlier.items, self.runs - earlier.runs, self.us.since(earlier.us))
