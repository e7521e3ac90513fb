"""When a candidate of a rollout is worse than it may be."""

from __future__ import annotations

import random

import pytest

from worker.serving.limits import FEWEST, Watch, total
from worker.serving.rollout import Arm, Figures
from worker.settings.rollout import RolloutLimits

LIMITS = RolloutLimits(errors=0.01, latency_ratio=1.5, disagreement=0.05)


def figures(
    records: int,
    errors: int = 0,
    us: float = 10.0,
    stable_errors: int = 0,
    compared: int = 0,
    disagreed: int = 0,
) -> Figures:
    """Of a candidate beside a stable version with nine times as many records at 10 µs."""
    stable = Arm(9 * records, stable_errors, 10.0 if records else 0.0)
    return Figures(stable, Arm(records, errors, us if records else 0.0), compared, disagreed)


@pytest.mark.parametrize(
    ("records", "errors", "broken"),
    [(49, 49, False), (50, 1, False), (50, 3, False), (50, 4, True), (1000, 20, False), (1000, 21, True)],
)
def test_errors_break_their_limit_only_beyond_chance(records: int, errors: int, broken: bool) -> None:
    """One bad record of fifty is chance; four of fifty, or 21 of a thousand, are not, with a limit of 1 %."""
    assert bool(Watch(LIMITS, FEWEST).broken(figures(records, errors))) == broken


def test_errors_that_the_stable_version_has_too_do_not_count() -> None:
    """Records that both versions refuse are the records' fault."""
    seen = figures(1000, errors=200, stable_errors=1800)
    assert not Watch(LIMITS, FEWEST).broken(seen)
    assert Watch(LIMITS, FEWEST).broken(figures(1000, errors=200))


def test_false_alarms_are_rare_at_the_limit_itself() -> None:
    """A candidate whose true share of errors is half the limit is not rolled back in 200 runs of 5,000 records."""
    rng = random.Random(1)
    for _ in range(200):
        watch, errors = Watch(LIMITS, FEWEST), 0
        for records in range(50, 5001, 50):
            errors += sum(rng.random() < 0.005 for _ in range(50))
            assert not watch.broken(figures(records, errors))


def test_disagreement_breaks_its_limit() -> None:
    """A shadow that gives other answers to one record in five is rolled back; one in fifty is not enough."""
    assert "disagreement: 200 of 1000" in Watch(LIMITS, FEWEST).broken(
        figures(1000, compared=1000, disagreed=200)
    )
    assert not Watch(LIMITS, FEWEST).broken(figures(1000, compared=1000, disagreed=20))


def test_a_candidate_that_stays_slow_is_too_slow() -> None:
    """Ten times the time per record breaks the limit once three stretches of records have shown it."""
    watch = Watch(LIMITS, FEWEST)
    said = [bool(watch.broken(figures(50 * n, us=100.0))) for n in range(1, 6)]
    assert said == [False, False, False, True, True]


def test_one_hiccup_is_not_slow() -> None:
    """A single stretch that took a hundred times as long rolls nothing back, now or before the promotion."""
    watch, spent_us = Watch(LIMITS, FEWEST), 0.0
    for n in range(1, 21):
        spent_us += 50 * (1000.0 if n == 5 else 10.0)
        seen = figures(50 * n, us=spent_us / (50 * n))
        assert not watch.broken(seen)
    assert not watch.over(seen)


def test_limits_that_are_off_never_break() -> None:
    """null switches a limit off."""
    off = RolloutLimits(errors=None, latency_ratio=None, disagreement=None)
    watch = Watch(off, FEWEST)
    for n in range(1, 9):
        seen = figures(50 * n, errors=50 * n, us=1e6, compared=50 * n, disagreed=50 * n)
        assert not watch.broken(seen)
    assert not watch.over(seen)


def test_before_a_promotion_the_figures_count_as_they_stand() -> None:
    """At the end 3 % of errors are too many even if chance could explain them, but one bad record never is."""
    watch = Watch(LIMITS, FEWEST)
    assert not watch.broken(figures(100, errors=3))
    assert watch.over(figures(100, errors=3))
    assert not watch.over(figures(10, errors=1))


def test_the_figures_of_replicas_add_up() -> None:
    """Counts are summed; times are weighted by the records they are of."""
    both = total([figures(100, 1, us=10.0, compared=10), figures(300, 2, us=30.0, disagreed=4)])
    assert both == Figures(Arm(3600, 0, 10.0), Arm(400, 3, 25.0), 10, 4)


def test_a_replica_that_cannot_compare_times_does_not_hide_that_another_is_slow() -> None:
    """Where all keys of a replica are the candidate's, its time is not known, and counts for nothing."""
    alone = Figures(Arm(), Arm(1000, 0, 0.0))
    both = total([alone, figures(100, us=100.0)])
    assert both.candidate == Arm(1100, 0, 100.0)
    assert "latency_ratio: 10.00" in Watch(LIMITS, FEWEST).over(both)
