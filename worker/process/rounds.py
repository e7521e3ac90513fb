"""Work that the loop's thread does between two turns, each piece at its own time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Chore:
    """One piece of work.

    Args:
        due_s: when it is due next, in seconds of the rounds' clock.
        do: does it; takes the present time and returns when it is due again.
    """

    due_s: float
    do: Callable[[float], float]


def every(interval_s: float, do: Callable[[], object]) -> Chore:
    """A chore that is due at once and then ``interval_s`` after each time it was done."""

    def repeat(now_s: float) -> float:
        do()
        return now_s + interval_s

    return Chore(0.0, repeat)


class Rounds:
    """Does the chores that are due. One comparison per chore and turn.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, chores: Sequence[Chore], clock: Callable[[], float]) -> None:
        self._chores = chores
        self._clock = clock

    def __call__(self) -> None:
        """Do what is due. Whatever a chore raises ends the loop."""
        now_s = self._clock()
        for chore in self._chores:
            if now_s >= chore.due_s:
                chore.due_s = chore.do(now_s)
