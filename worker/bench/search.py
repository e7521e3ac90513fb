"""The highest rate that a group holds: double until it breaks, then bisect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worker.bench.trial import Trial

FIRST_RATE = 100.0
LOWEST_RATE = 1.0
CLOSE = 1.1
"""Stop when the lowest rate that failed is within this factor of the highest rate that held."""
HELD, TRIES = 2, 3
"""The rate that is told has held in so many trials of so many: one lucky trial on a noisy machine is no figure."""


@dataclass(frozen=True)
class Found:
    """The outcome of a search."""

    trials: list[Trial]
    best: Trial | None
    """A trial at the highest rate that held ``HELD`` times; None when not even the lowest did."""
    p99_ms: tuple[float, float]
    """Lowest and highest 99th percentile of all trials at that rate; (0, 0) when there is none."""
    generator_limited: bool
    """The load generator gave up before the group did: the group may hold more."""


def search(trial: Callable[[float], Trial], p99_ms: float, first_rate: float = FIRST_RATE) -> Found:
    """Find the highest rate with every record answered and the 99th percentile within ``p99_ms``.

    A rate that fails is tried a second time, because one pause of the machine is not the group's limit. At the
    end the highest rate is tried until it has held ``HELD`` times; if it does not, the next lower one is.

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
    best, spread = _confirmed(trial, trials, p99_ms)
    limited = any(t.generator_limited for t in trials if t.wanted_per_s == high)
    return Found(trials, best, spread, limited)


def _confirmed(
    trial: Callable[[float], Trial], trials: list[Trial], p99_ms: float
) -> tuple[Trial | None, tuple[float, float]]:
    """The best trial of the highest rate that holds again, and the spread of its 99th percentile in milliseconds."""
    for rate in sorted({t.wanted_per_s for t in trials if t.holds(p99_ms)}, reverse=True):
        ours = [t for t in trials if t.wanted_per_s == rate]
        while sum(t.holds(p99_ms) for t in ours) < HELD and len(ours) < TRIES:
            ours.append(trial(rate))
            trials.append(ours[-1])
        if sum(t.holds(p99_ms) for t in ours) >= HELD:
            times = [t.latency_ms["p99"] for t in ours if "p99" in t.latency_ms]
            return max(ours, key=lambda t: t.holds(p99_ms)), (min(times), max(times))
    return None, (0.0, 0.0)
