"""Searches the highest rate that a group sustains: doubles the rate until a trial fails, then bisects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worker.bench.trial import Trial

FIRST_RATE = 100.0
LOWEST_RATE = 1.0
CLOSE = 1.1
"""Stop when the lowest rate that failed is within this factor of the highest rate that held."""


@dataclass(frozen=True)
class Found:
    """The outcome of a search."""

    trials: list[Trial]
    best: Trial | None
    """The trial with the highest rate that held; None if not even the lowest rate did."""
    generator_limited: bool
    """The load generator gave up before the group did: the group may hold more."""


def search(trial: Callable[[float], Trial], p99_ms: float, first_rate: float = FIRST_RATE) -> Found:
    """Find the highest rate with every record answered and the 99th percentile within ``p99_ms``.

    A rate that fails is tried a second time, because one pause of the machine is not the group's limit.

    Args:
        trial: runs one trial at a rate (records/s).
    """
    trials: list[Trial] = []

    def holds(rate: float) -> bool:
        for _ in range(2):
            trials.append(trial(rate))
            if trials[-1].holds(p99_ms):
                return True
        return False

    low, high = 0.0, 0.0
    rate = first_rate
    while True:
        if holds(rate):
            low = rate
            if high and high <= CLOSE * low:
                break
            rate = (low + high) / 2 if high else 2 * low
        else:
            high = rate
            if (low and high <= CLOSE * low) or high <= LOWEST_RATE:
                break
            rate = (low + high) / 2 if low else max(high / 2, LOWEST_RATE)
    best = max((t for t in trials if t.holds(p99_ms)), key=lambda t: t.wanted_per_s, default=None)
    limited = any(t.generator_limited for t in trials if t.wanted_per_s == high)
    return Found(trials, best, limited)
