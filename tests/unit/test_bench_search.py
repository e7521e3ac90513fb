"""The search for the highest rate a group holds, on made-up groups."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from worker.bench.search import CLOSE, LOWEST_RATE, search
from worker.bench.trial import Trial

BOUND_MS = 20.0


def group(capacity: float, generator: float = float("inf")) -> Callable[[float], Trial]:
    """A group that is quick up to ``capacity`` records/s, under a load generator that manages ``generator``."""

    def trial(rate: float) -> Trial:
        latency = {"p50": 1.0, "p99": 5.0 if rate <= capacity else 500.0}
        reached = min(rate, generator)
        return Trial(rate, 100, reached, reached, 100, 0, 0, 0, 0, latency, {}, 0.0)

    return trial


@pytest.mark.parametrize("capacity", [3.0, 99.0, 100.0, 137.0, 5_000.0, 123_456.0])
def test_the_best_rate_is_close_to_what_the_group_can_do(capacity: float) -> None:
    """Whatever the capacity, the rate found holds and lies within a tenth below it."""
    found = search(group(capacity), BOUND_MS)
    assert found.best is not None
    assert found.best.wanted_per_s <= capacity <= CLOSE * found.best.wanted_per_s
    assert not found.generator_limited


def test_a_group_that_never_holds_has_no_best_rate() -> None:
    """The search ends at the lowest rate instead of going on for ever."""
    found = search(group(0.0), BOUND_MS)
    assert found.best is None
    assert found.trials[-1].wanted_per_s == LOWEST_RATE
    assert found.p99_ms == (0.0, 0.0)


def test_a_generator_at_its_limit_is_named() -> None:
    """When the load could not go higher, the rate found is the generator's and said to be."""
    found = search(group(1e9, generator=2_000), BOUND_MS)
    assert found.generator_limited
    assert found.best is not None
    assert found.best.wanted_per_s <= 2_000 / 0.99


def test_one_pause_of_the_machine_does_not_end_the_search() -> None:
    """A rate that breaks once and then holds counts as held."""
    steady, paused = group(1_000.0), []

    def trial(rate: float) -> Trial:
        if rate == 400 and not paused:
            paused.append(rate)
            return group(0.0)(rate)
        return steady(rate)

    found = search(trial, BOUND_MS)
    assert found.best is not None
    assert found.best.wanted_per_s * CLOSE >= 1_000


def test_one_lucky_trial_is_no_figure() -> None:
    """A rate that held once and breaks afterwards is not told; the next lower one that holds again is."""
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
