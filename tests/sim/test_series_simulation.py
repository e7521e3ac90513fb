"""Windows over records under seeded schedules: the results are those of one reader that never stops.

pytest tests/sim --sim-seed=N and --sim-count=N work here as they do for the other schedules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import pytest
from sim_judges import all_judges
from sim_series import WholeWindows, WindowedSchedule
from sim_world import Violation

from worker.batch import Partition
from worker.loop import series_source
from worker.loop.series import Marks, Series
from worker.loop.series_source import SeriesSource

HARD_CASES = (
    "cooperative rebalance",
    "crash in commit",
    "crash in commit transaction",
    "crash in take",
    "crash with unacknowledged outputs",
    "crashed",
    "eager rebalance",
    "expired",
    "invalid",
    "lost with work in flight",
    "rewind",
    "tombstone",
    "too many windows",
    "transaction aborted",
    "transaction unknown",
)
SEEDS_PER_BUG = 200


def play(seed: int, cases: Counter[str] | None = None) -> None:
    with mock.patch.object(series_source, "SNAPSHOT_RECORDS", 1 + seed % 7):
        WindowedSchedule(seed, [*all_judges(), WholeWindows()], cases).play()


@pytest.mark.timeout(600)
def test_windows_are_those_of_one_reader_that_never_stops(seeds: range) -> None:
    """Whatever is killed, moved or undone: each complete window has one result with its own samples, nothing else has one."""
    cases: Counter[str] = Counter()
    for seed in seeds[: max(1, len(seeds) // 5)]:
        try:
            play(seed, cases)
        except Violation as violation:
            pytest.fail(f"--sim-seed={seed}: {violation}")
    if len(seeds) > 5_000:
        assert [case for case in HARD_CASES if cases[case] < 3] == []


def _no_marks(self: SeriesSource, positions: Any, notes: Mapping[Partition, str]) -> dict[Partition, str]:
    return dict(notes)


def _stays(self: Any, position: int) -> int:
    return position


def _everything(self: Any, rules: Any, marks: Marks, until: int) -> None:
    self.rules, self.until, self.series, self.snapshots, self.since = (
        rules,
        0,
        Series(rules, marks),
        [marks],
        0,
    )


def _newest(self: Any, position: int) -> Marks:
    newest: Marks = self.snapshots[-1]
    return newest


BUGS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "a commit carries no marks": (SeriesSource, "annotated", _no_marks),
    "a rewind leaves the windows as they are": (series_source._State, "back_to", _stays),
    "what is read again is answered again": (series_source._State, "__init__", _everything),
    "marks of records that are not acknowledged are committed": (series_source._State, "best", _newest),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_caught(bug: tuple[Any, str, Callable[..., Any]]) -> None:
    """Within some schedules a judge speaks up."""
    with mock.patch.object(*bug):
        for seed in range(SEEDS_PER_BUG):
            try:
                play(seed)
            except Violation:
                return
    pytest.fail("no judge noticed")
