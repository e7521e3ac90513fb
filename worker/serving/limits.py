"""When a candidate is worse than it may be. Pure.

A limit is *broken* when chance does not explain it: then any replica ends the rollout at once. Before a promotion the
candidate must also be within its limits as the figures stand.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

from worker.serving.rollout import Arm, Figures
from worker.settings.rollout import RolloutLimits

FEWEST = 50
"""Records of the candidate below which nothing is said of it, or ``min_records`` where that is less."""
SPREAD = 3.0
"""Standard deviations that chance may take a count above what its limit allows."""
STRETCHES = 3
"""Stretches in a row, of the fewest records each, in which a candidate must have been too slow."""
STRETCHES_KEPT = 63


def total(parts: Iterable[Figures]) -> Figures:
    """The figures of several replicas as one."""
    parts = [*parts]
    return Figures(
        _arm([each.stable for each in parts]),
        _arm([each.candidate for each in parts]),
        sum(each.compared for each in parts),
        sum(each.disagreed for each in parts),
    )


class Watch:
    """Looks at the growing figures of one replica and one rollout.

    Args:
        fewest: records of the candidate below which nothing is said.
    """

    def __init__(self, limits: RolloutLimits, fewest: int) -> None:
        self._limits = limits
        self._fewest = max(1, fewest)
        self._mark: Figures | None = None
        self._ratios: deque[float] = deque(maxlen=STRETCHES_KEPT)
        """Time per record, the candidate's by the stable version's, in each of the last stretches."""

    def broken(self, figures: Figures) -> str:
        """The limit that is broken beyond chance; empty if none is.

        Errors and disagreements are counts: one is broken when it exceeds the count that its limit allows by more than
        three standard deviations of a Poisson count, and one more. With the default of 1 % that takes 4 bad ones of
        50 records, 21 of 1,000, 131 of 10,000. Time is broken when the ratio is too large in each of the last three
        stretches of records, and in half of all: a hiccup is in one stretch only.
        """
        self._measure(figures)
        if figures.candidate.records < self._fewest:
            return ""
        found = _errors(figures, self._limits, SPREAD) or _disagreement(figures, self._limits, SPREAD)
        if found or self._limits.latency_ratio is None or len(self._ratios) < STRETCHES:
            return found
        last = [*self._ratios][-STRETCHES:]
        return self._slow(figures) if min(last) > self._limits.latency_ratio else ""

    def over(self, figures: Figures) -> str:
        """What the candidate is worse at than it may be, as the figures of all replicas stand; empty if nothing.

        One bad record never counts, whatever its share is.
        """
        return (
            _errors(figures, self._limits, 0.0)
            or _disagreement(figures, self._limits, 0.0)
            or self._slow(figures)
        )

    def _measure(self, figures: Figures) -> None:
        mark = self._mark
        if mark is None:
            self._mark = figures
            return
        grown = (
            figures.candidate.records - mark.candidate.records,
            figures.stable.records - mark.stable.records,
        )
        if min(grown) < self._fewest:
            return
        self._mark = figures
        theirs_us = _mean_us(figures.stable, mark.stable)
        if theirs_us > 0:
            self._ratios.append(_mean_us(figures.candidate, mark.candidate) / theirs_us)

    def _slow(self, figures: Figures) -> str:
        limit, stable_us = self._limits.latency_ratio, figures.stable.infer_us
        if limit is None or not stable_us:
            return ""
        ratio = median(self._ratios) if self._ratios else figures.candidate.infer_us / stable_us
        if ratio <= limit:
            return ""
        return (
            f"latency_ratio: {ratio:.2f} ({figures.candidate.infer_us:.0f} µs a record, the stable version "
            f"{stable_us:.0f} µs); at most {limit:g} is allowed"
        )


def _mean_us(later: Arm, earlier: Arm) -> float:
    """Time per record between two moments, about: the runs that count are not always all."""
    spent_us = later.infer_us * later.records - earlier.infer_us * earlier.records
    return max(0.0, spent_us) / (later.records - earlier.records)


def _errors(figures: Figures, limits: RolloutLimits, spread: float) -> str:
    candidate, stable = figures.candidate, figures.stable
    if limits.errors is None or not candidate.records:
        return ""
    theirs = stable.errors / stable.records if stable.records else 0.0
    allowed = (theirs + limits.errors) * candidate.records
    if candidate.errors <= allowed + spread * math.sqrt(allowed) + 1:
        return ""
    share = candidate.errors / candidate.records
    return (
        f"errors: {candidate.errors} of {candidate.records} records ({share:.2%}), the stable version {theirs:.2%}; "
        f"at most {limits.errors:.2%} more are allowed"
    )


def _disagreement(figures: Figures, limits: RolloutLimits, spread: float) -> str:
    if limits.disagreement is None or not figures.compared:
        return ""
    allowed = limits.disagreement * figures.compared
    if figures.disagreed <= allowed + spread * math.sqrt(allowed) + 1:
        return ""
    return (
        f"disagreement: {figures.disagreed} of {figures.compared} records "
        f"({figures.disagreed / figures.compared:.2%}); at most {limits.disagreement:.2%} are allowed"
    )


def _arm(parts: list[Arm]) -> Arm:
    timed = [each for each in parts if each.infer_us]  # 0: both versions had no runs of equal size there
    records = sum(each.records for each in timed)
    spent_us = sum(each.infer_us * each.records for each in timed)
    return Arm(
        sum(each.records for each in parts),
        sum(each.errors for each in parts),
        spent_us / records if records else 0.0,
    )
