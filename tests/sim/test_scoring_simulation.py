"""Results and labels under seeded schedules: whatever is killed or moved, each pair is counted once.

pytest tests/sim --sim-seed=N and --sim-count=N work here as they do for the other schedules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from sim_scoring import Schedule
from sim_world import Violation

from worker.scoring import notes
from worker.scoring.checkpoints import Checkpoints
from worker.scoring.joiner import Joiner, Mark
from worker.scoring.line import Line

HARD_CASES = (
    "killed",
    "killed after",
    "killed before",
    "label early",
    "label never",
    "label too late",
    "label twice",
    "partitions move",
    "refused",
    "result twice",
)
SEEDS_PER_BUG = 300


@pytest.mark.timeout(600)
def test_each_pair_is_counted_once(seeds: range) -> None:
    """Labels come early, late, twice, never or too late, processes die and swap partitions: what was published is what one reader of all topics counts."""
    cases: Counter[str] = Counter()
    for seed in seeds[: max(1, len(seeds) // 5)]:
        try:
            Schedule(seed, cases).play()
        except Violation as violation:
            pytest.fail(f"--sim-seed={seed}: {violation}")
    if len(seeds) > 100:
        assert [case for case in HARD_CASES if cases[case] < 3] == []


def _read_position(self: Line) -> int:
    return self.next


def _where_labels_are(self: Checkpoints, results: Any) -> int:
    newest: int = self._kept[-1].labels
    return newest


def _counts_again(self: Joiner) -> Any:
    for book in self.books.values():
        book.due = book.live
    return _take(self)


def _no_memory(self: Any, key: bytes) -> Any:
    return None


def _no_note(mark: Mark, last: str) -> str:
    return ""


_take = Joiner.take

BUGS: dict[str, tuple[Any, str, Any]] = {
    "the committed position is what was read": (Line, "oldest", property(_read_position)),
    "labels are committed where they were read": (Checkpoints, "labels_from", _where_labels_are),
    "what waits behind is counted at once": (Joiner, "take", _counts_again),
    "nothing is remembered": ("worker.scoring.line.Recent", "get", _no_memory),
    "notes are lost": (notes, "written", _no_note),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_caught(bug: tuple[Any, str, Callable[..., Any]]) -> None:
    """Within some schedules the judge speaks up."""
    where, name, broken = bug
    target = f"{where}.{name}" if isinstance(where, str) else None
    patch = mock.patch(target, broken) if target else mock.patch.object(where, name, broken)
    with patch:
        for seed in range(SEEDS_PER_BUG):
            try:
                Schedule(seed).play()
            except Violation:
                return
    pytest.fail("no judge noticed")
