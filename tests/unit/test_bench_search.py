"""The search for the highest rate a group holds, on made-up groups."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from worker.bench.search import AGREE, CLOSE, LATE_MOST, LOWEST_RATE, search
from worker.bench.trial import Trial

BOUND_MS = 20.0


def window(rate: float, reached: float, p50: float, p99: float, late_ms: float = 0.0) -> Trial:
    latency = {"p50": p50, "p99": p99}
    return Trial(rate, 100, reached, reached, 100, 0, 0, 0, 0, latency, {}, late_ms)


def group(capacity: float, generator: float = float("inf")) -> Callable[[float], Trial]:
    """A group that is quick up to ``capacity`` records/s and queues beyond, under a load generator that manages ``generator``."""

    def trial(rate: float) -> Trial:
        queued_ms = 0.0 if rate <= capacity else 500.0 * rate / capacity
        return window(rate, min(rate, generator), 1.0 + queued_ms / 2, 5.0 + queued_ms)

    return trial


@pytest.mark.parametrize("capacity", [3.0, 99.0, 100.0, 137.0, 5_000.0, 123_456.0])
def test_the_best_rate_is_close_to_what_the_group_can_do(capacity: float) -> None:
    """Whatever the capacity, the rate found holds and lies within a tenth below it."""
    found = search(group(capacity), BOUND_MS)
    assert found.best is not None
    assert found.best.wanted_per_s <= capacity <= CLOSE * found.best.wanted_per_s
    assert not found.generator_limited
    assert found.noisy == ""


def test_a_group_that_never_holds_has_no_best_rate() -> None:
    """Where a record alone takes longer than the bound the search ends without a rate, and does not call that noise."""
    found = search(lambda rate: window(rate, rate, 400.0, 500.0), BOUND_MS)
    assert found.best is None
    assert found.noisy == ""
    assert found.trials[-1].wanted_per_s >= LOWEST_RATE
    assert found.p99_ms == (0.0, 0.0)


def test_a_generator_at_its_limit_is_named() -> None:
    """When the load could not go higher, the rate found is the generator's and said to be."""
    found = search(group(1e9, generator=2_000), BOUND_MS)
    assert found.generator_limited
    assert found.best is not None
    assert found.best.wanted_per_s <= 2_000 / 0.99


@pytest.mark.parametrize("place", [0, 1])
def test_one_pause_of_the_machine_does_not_end_the_search(place: int) -> None:
    """A rate holds when two of three windows hold, whichever of them was paused."""
    steady, seen = group(1_000.0), []

    def trial(rate: float) -> Trial:
        seen.append(rate)
        return group(1.0)(rate) if rate == 400 and seen.count(rate) == place + 1 else steady(rate)

    found = search(trial, BOUND_MS)
    assert found.best is not None
    assert found.best.wanted_per_s * CLOSE >= 1_000
    (step,) = (step for step in found.steps if step.rate == 400)
    assert (step.verdict, len(step.windows)) == ("held", 3)


def test_one_lucky_window_is_no_figure() -> None:
    """A rate that held in one window of three is not told."""
    steady, lucky = group(1_000.0), []

    def trial(rate: float) -> Trial:
        if rate > 1_000 and not lucky:
            lucky.append(rate)
            return group(1e9)(rate)
        return steady(rate)

    found = search(trial, BOUND_MS)
    assert lucky
    assert found.best is not None
    assert found.best.wanted_per_s <= 1_000
    assert found.p99_ms == (5.0, 5.0)


def test_a_late_generator_repeats_the_window() -> None:
    """A window over the bound with a late generator does not count; one within the bound does, for lateness is in its latency."""
    steady, late = group(1_000.0), []

    def trial(rate: float) -> Trial:
        if rate == 200 and len(late) < 2:
            late.append(rate)
            return window(rate, rate, 10.0, 90.0, late_ms=40.0)
        if rate == 800:
            return window(rate, rate, 2.0, 15.0, late_ms=9.0)
        return steady(rate)

    found = search(trial, BOUND_MS)
    assert len(late) == 2
    assert found.best is not None
    assert found.best.wanted_per_s * CLOSE >= 1_000
    (step,) = (step for step in found.steps if step.rate == 200)
    assert (step.verdict, len(step.windows)) == ("held", AGREE)


def test_a_generator_that_is_always_late_at_a_rate_it_reaches_is_noise() -> None:
    """A sender that reaches 200 records/s and is late all the same tells of the machine: there is no figure, but the spread."""

    def trial(rate: float) -> Trial:
        return group(1e9)(rate) if rate <= 100 else window(rate, rate, 10.0, 246.0, late_ms=60.0)

    found = search(trial, BOUND_MS)
    assert found.best is None
    assert not found.generator_limited
    assert found.noisy.startswith("p99 246.0 to 246.0 ms at 1")
    assert sum(each.wanted_per_s == 200 for each in found.trials) == LATE_MOST


def test_a_machine_that_workers_and_generator_fill_together_has_a_figure() -> None:
    """Beyond the rate found the generator is late and half of the records are, too: the rate is told, as a lower bound."""

    def trial(rate: float) -> Trial:
        return window(rate, rate, 2.0, 9.0) if rate <= 1_000 else window(rate, rate, 15.0, 90.0, late_ms=40.0)

    found = search(trial, BOUND_MS)
    assert found.best is not None
    assert found.best.wanted_per_s * CLOSE >= 1_000
    assert found.full
    assert found.generator_limited


def test_a_rate_that_held_and_breaks_at_the_end_is_noise() -> None:
    """The best rate is tried once more; if it breaks and only a far lower one holds, the windows contradict one another."""
    seen: list[float] = []

    def trial(rate: float) -> Trial:
        seen.append(rate)
        worn = seen.count(400) > AGREE and rate > 150
        return group(1.0 if worn else 410.0)(rate)

    found = search(trial, BOUND_MS)
    assert found.best is None
    assert "at 400 records/s" in found.noisy


def test_latency_that_does_not_depend_on_the_rate_is_noise() -> None:
    """A median within the bound and a 99th percentile far above it at every rate: no figure, and no search down to one record/s."""
    noise = random.Random(7)
    found = search(lambda rate: window(rate, rate, 11.0, noise.uniform(120, 380)), BOUND_MS)
    assert found.best is None
    assert found.noisy
    assert found.trials[-1].wanted_per_s > 2 * LOWEST_RATE
