"""Turns: who goes first, and that nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from worker.loop.turns import TURNS, Turns, ranked


def played(
    priorities: dict[str, int], turns: int, waits: Callable[[int], bool] = lambda turn: True
) -> list[str]:
    """Who had each turn, where everybody always waits; ``waits`` says in which turns the first one named does."""
    given, first = Turns(priorities.__getitem__), next(iter(priorities))
    had = []
    for turn in range(turns):
        waiting = [name for name in priorities if name != first or waits(turn)]
        chosen = given.order(waiting)[0]
        given.went(chosen, [name for name in waiting if name != chosen])
        had.append(chosen)
    return had


def test_the_least_important_one_has_one_turn_of_twenty() -> None:
    """Beside one that always waits, priority 0 has every twentieth turn, as priority 8 has."""
    for lower in (0, 8):
        had = played({"first": 9, "last": lower}, 200)
        assert [turn for turn, name in enumerate(had) if name == "last"] == list(range(TURNS - 1, 200, TURNS))


def test_nobody_waits_longer_for_a_turn_than_there_are_others_before_it() -> None:
    """With four priorities each of the lower ones has its turn again within twenty turns and one for each other."""
    had = played({"a": 9, "b": 6, "c": 3, "d": 0}, 1_000)
    for name in "bcd":
        turns = [-1, *(turn for turn, who in enumerate(had) if who == name)]
        assert max(after - before for before, after in pairwise(turns)) <= TURNS + 2
    assert Counter(had)["a"] >= 0.8 * len(had)


def test_turns_that_nobody_more_important_wants_go_to_the_next() -> None:
    """What the most important one leaves over is the next one's at once; nothing is kept free for it."""
    had = played({"first": 9, "middle": 5, "last": 0}, 40, waits=lambda turn: turn % 2 == 0)
    assert Counter(had[1::2])["middle"] >= 18
    assert "last" in had


@pytest.mark.parametrize(
    ("priorities", "expected"), [([], False), ([5], False), ([5, 5], False), ([5, 4], True)]
)
def test_like_priorities_need_no_turns(priorities: list[int], expected: bool) -> None:
    """Nothing is counted where all priorities are the same."""
    assert ranked(priorities) is expected
