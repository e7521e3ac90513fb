"""The highest rate that a group holds: double until it breaks, then bisect; and no figure where the machine is too noisy.

A step is one rate. It counts when two of at most three windows say the same. A window that is over the bound while the load
generator was late itself says nothing of the group and is repeated. What was found must hold once more at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from worker.bench.trial import Trial

FIRST_RATE = 100.0
LOWEST_RATE = 1.0
CLOSE = 1.1
"""Stop when the lowest rate that failed is within this factor of the highest rate that held."""
AGREE = 2
"""So many windows of a step must say the same."""
LATE_MOST = 3
"""After so many windows that say nothing, the step is given up: it is beyond the load generator, or the machine is too noisy."""
NO_BETTER_AFTER, NO_BETTER = 3, 0.8
"""Where so many halvings of the rate did not bring the 99th percentile below this part of what it was, load is not the cause."""
NEAR = 1.25
"""Where the best rate does not hold once more, a lower one counts only within this factor: at the limit one of two rates may
break. A wider gap says that the machine is another one than it was."""

Verdict = Literal["held", "over", "late", "full", "noise"]
"""``late``: the load generator did not reach the rate. It did, and yet it was late at many records: ``full`` if half of the
records took more than half of the bound, so that generator and workers fill a machine together; else ``noise``."""


@dataclass(frozen=True)
class Step:
    """One rate, and what its windows say together."""

    rate: float
    windows: tuple[Trial, ...]
    """Those that count: without those of a late generator, unless there are no others."""
    verdict: Verdict

    def p99_ms(self) -> list[float]:
        """The 99th percentile of each window that has one."""
        return [trial.latency_ms["p99"] for trial in self.windows if "p99" in trial.latency_ms]


@dataclass(frozen=True)
class Found:
    """The outcome of a search."""

    trials: list[Trial]
    best: Trial | None
    """A window at the highest rate that held, in the search and once more at its end; None: there is no such rate."""
    p99_ms: tuple[float, float]
    """Lowest and highest 99th percentile of the windows at that rate; (0, 0) when there is none."""
    generator_limited: bool
    """The load generator gave up before the group did: the group may hold more."""
    noisy: str = ""
    """Why no rate is told although one may hold: the windows contradict one another."""
    full: bool = False
    """Load generator and workers seem to fill a machine together; whether they do, their CPU time tells."""
    steps: list[Step] = field(default_factory=list)


def search(trial: Callable[[float], Trial], p99_ms: float, first_rate: float = FIRST_RATE) -> Found:
    """Find the highest rate with every record answered and the 99th percentile within ``p99_ms``.

    Args:
        trial: runs one window at a rate (records/s).
    """
    return _Search(trial, p99_ms).run(first_rate)


class _Search:
    def __init__(self, trial: Callable[[float], Trial], p99_ms: float) -> None:
        self._trial = trial
        self._p99_ms = p99_ms
        self._trials: list[Trial] = []
        self._steps: list[Step] = []

    def run(self, first_rate: float) -> Found:
        low, high = 0.0, 0.0
        broke: Verdict = "over"
        rate = first_rate
        while True:
            step = self._step(rate)
            if step.verdict == "held":
                low = rate
            else:
                high, broke = rate, step.verdict
                if not low and (rate <= LOWEST_RATE or self._no_better()):
                    return self._none(broke)
            if low and high and high <= CLOSE * low:
                return self._confirmed(broke)
            between = (low + high) / 2 if low else max(high / 2, LOWEST_RATE)
            rate = between if high else 2 * low

    def _step(self, rate: float) -> Step:
        """Run windows at this rate until two of them say the same."""
        windows: list[Trial] = []
        late: list[Trial] = []
        while True:
            window = self._trial(rate)
            self._trials.append(window)
            if window.generator_limited and not window.holds(self._p99_ms):
                late.append(window)
            else:
                windows.append(window)
            held = sum(each.holds(self._p99_ms) for each in windows)
            unheard = self._unheard(late)
            verdict: Verdict | None = (
                "held"
                if held >= AGREE
                else "over"
                if len(windows) - held >= AGREE
                else unheard
                if len(late) >= LATE_MOST
                else None
            )
            if verdict is not None:
                self._steps.append(Step(rate, tuple(windows or late), verdict))
                return self._steps[-1]

    def _unheard(self, late: Sequence[Trial]) -> Verdict:
        """Why windows say nothing."""
        reached = [each for each in late if each.reached and "p50" in each.latency_ms]
        if not reached:
            return "late"
        return "full" if min(each.latency_ms["p50"] for each in reached) > self._p99_ms / 2 else "noise"

    def _no_better(self) -> bool:
        """Whether the rate was halved several times, nothing ever held, and the 99th percentile stayed where it was."""
        over = [min(times) for step in self._steps if (times := step.p99_ms())]
        if len(over) <= NO_BETTER_AFTER:
            return False
        return over[-1] > NO_BETTER * over[-1 - NO_BETTER_AFTER]

    def _none(self, broke: Verdict) -> Found:
        """Nothing held: because a record alone takes too long, or because something else than load makes some of them late."""
        medians = [each.latency_ms["p50"] for each in self._steps[-1].windows if "p50" in each.latency_ms]
        noisy = ""
        if medians and min(medians) <= self._p99_ms and broke in ("over", "noise"):
            noisy = _spread(self._steps[-NO_BETTER_AFTER - 1 :])
        return Found(self._trials, None, (0.0, 0.0), broke in ("late", "full"), noisy, steps=self._steps)

    def _confirmed(self, broke: Verdict) -> Found:
        """The highest rate that held and holds once more now; none where only noise kept the search from a higher one."""
        if broke == "noise":
            last = [step for step in self._steps if step.verdict == "noise"]
            return Found(self._trials, None, (0.0, 0.0), False, _spread(last), steps=self._steps)
        late = broke in ("late", "full")
        held = sorted({step.rate for step in self._steps if step.verdict == "held"}, reverse=True)
        again: list[Step] = []
        for rate in (each for each in held if each * NEAR >= held[0]):
            step = self._step(rate)
            again.append(step)
            if step.verdict == "held":
                ours = [each for each in self._steps if each.rate == rate and each.verdict == "held"]
                times = [time for each in ours for time in each.p99_ms()]
                good = [each for each in step.windows if each.holds(self._p99_ms)]
                best = max(good, key=lambda each: each.latency_ms["p99"])
                spread = min(times), max(times)
                return Found(self._trials, best, spread, late, "", broke == "full", self._steps)
        return Found(self._trials, None, (0.0, 0.0), late, _spread(again), steps=self._steps)


def _spread(steps: Sequence[Step]) -> str:
    """``p99 27 to 383 ms at 60 to 75 records/s``."""
    times = [time for step in steps for time in step.p99_ms()]
    rates = [step.rate for step in steps]
    at = f"{min(rates):,.0f}" if min(rates) == max(rates) else f"{min(rates):,.0f} to {max(rates):,.0f}"
    if not times:
        return f"no answers at {at} records/s"
    return f"p99 {min(times):,.1f} to {max(times):,.1f} ms at {at} records/s"
