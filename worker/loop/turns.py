"""Whose turn it is among those of unlike priority: the most important first, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")

NOBODY = 10
"""No priority is as high."""
TURNS = 20
"""Of so many turns, each of those who wait behind more important ones has one."""


class Turns(Generic[T]):
    """See the module. Turns are counted, not timed: the same sequence of turns always gives the same order.

    Args:
        priority: of a candidate, a larger number first. Candidates are told apart by their hash.
    """

    def __init__(self, priority: Callable[[T], int]) -> None:
        self._priority = priority
        self._passed: dict[T, int] = {}
        """Turns that a more important one had while this one waited."""

    def come(self, candidate: T) -> bool:
        """Whether it has let as many others pass as it must."""
        return self._passed.get(candidate, 0) >= TURNS - 1

    def order(self, candidates: Iterable[T]) -> list[T]:
        """Those whose turn has come, then the most important ones; equals as they are given."""
        return sorted(candidates, key=self._place)

    def _place(self, candidate: T) -> tuple[int, int]:
        passed = self._passed.get(candidate, 0)
        return -passed if passed >= TURNS - 1 else 0, -self._priority(candidate)

    def went(self, candidate: T, waiting: Iterable[T]) -> None:
        """A candidate had a turn.

        Args:
            waiting: who else could have had it.
        """
        self._passed.pop(candidate, None)
        priority = self._priority(candidate)
        for other in waiting:
            if self._priority(other) < priority:
                self._passed[other] = self._passed.get(other, 0) + 1


class Rush:
    """One turn where whatever goes keeps everybody else waiting.

    The less important ones that are due let every more important one go before them. It does not wait for company then:
    the time would not be left free.

    Args:
        due: priorities of those that would go if there were no others.
        first: whoever is less important than this lets others go first.
    """

    def __init__(self, due: Iterable[int] = (), first: int = -1) -> None:
        self.above = min(due, default=NOBODY)
        """Whoever is more important than this goes at once."""
        self.one_each = self.above != NOBODY
        """Nobody has more than one slab in this turn."""
        self.first = first
        """The highest priority that has gone, or that others wait for."""

    def went(self, candidate: Prioritised) -> None:
        """A slab of this one goes in this turn."""
        if self.one_each:
            self.first = max(self.first, candidate.priority)


class Prioritised(Protocol):
    """Something with a priority."""

    @property
    def priority(self) -> int: ...


NO_RUSH = Rush()
"""Everybody goes who is due."""


def ranked(priorities: Iterable[int]) -> bool:
    """Whether there are unlike priorities, so that turns have to be counted at all."""
    return len({*priorities}) > 1
