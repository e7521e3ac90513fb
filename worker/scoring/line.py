"""Records of one partition that wait for their partners, in the order of their offsets.

A million of them wait in a few hundred megabytes: columns of plain numbers and one entry of a dictionary for each that
waits, no object of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Any

KEPT_MIN = 4_096
"""What has left is cut off when it is so much and more than half."""


class Line:
    """What was read of one partition and has not passed yet.

    An entry waits until :meth:`settle`. It passes once it and all entries before it are settled.

    Args:
        start: the offset that is read next.
    """

    def __init__(self, start: int) -> None:
        self.next = start
        """The offset behind the last record that was read."""
        self.waiting: dict[bytes, int] = {}
        """Id -> number of the entry, oldest first."""
        self._offsets = array("q")
        self._times = array("q")
        self._groups: list[Any] = []
        self._items: list[Any] = []
        self._outcomes: list[Any] = []
        """None while the entry waits."""
        self._first = 0
        """Number of the first entry that is kept."""
        self._passed = 0
        """How many of the entries that are kept have passed."""

    def __len__(self) -> int:
        """Entries that have not passed."""
        return len(self._offsets) - self._passed

    @property
    def oldest(self) -> int:
        """The offset of the oldest entry that waits; where none does, of the record that is read next."""
        at, outcomes = self._passed, self._outcomes
        while at < len(outcomes) and outcomes[at] is not None:
            at += 1
        return self._offsets[at] if at < len(outcomes) else self.next

    def add(self, key: bytes, offset: int, time_ms: int, item: Any, group: Any = None) -> int:
        """A record that waits; returns its number."""
        number = self._first + len(self._offsets)
        self.waiting[key] = number
        self._offsets.append(offset)
        self._times.append(time_ms)
        self._items.append(item)
        self._groups.append(group)
        self._outcomes.append(None)
        return number

    def entry(self, number: int) -> tuple[int, int, Any, Any]:
        """(offset, time in Unix milliseconds, item, group) of an entry."""
        at = number - self._first
        return self._offsets[at], self._times[at], self._items[at], self._groups[at]

    def settle(self, key: bytes, outcome: Any) -> None:
        """An entry no longer waits."""
        at = self.waiting.pop(key) - self._first
        self._outcomes[at] = outcome
        self._items[at] = None

    def oldest_waiting(self, count: int) -> list[tuple[bytes, int]]:
        """(id, number) of up to so many that wait, oldest first."""
        return list(islice(self.waiting.items(), count))

    def waiting_since(self, before_ms: int, most: int | None = None) -> list[tuple[bytes, int]]:
        """(id, number) of the oldest that wait, as far as all of them are older than a time; at most so many."""
        found = []
        for key, number in islice(self.waiting.items(), most):
            if self._times[number - self._first] >= before_ms:
                break
            found.append((key, number))
        return found

    def passing(self) -> Iterator[tuple[Any, Any]]:
        """(group, outcome) of the entries that pass now; they pass once all of them were taken."""
        at = self._passed
        while at < len(self._outcomes) and self._outcomes[at] is not None:
            yield self._groups[at], self._outcomes[at]
            at += 1
        self._passed = at
        if at >= KEPT_MIN and 2 * at > len(self._offsets):
            for column in (self._offsets, self._times, self._groups, self._items, self._outcomes):
                del column[:at]
            self._first += at
            self._passed = 0


class Recent:
    """The last ids that were settled, with what is known of each.

    Args:
        most: how many are remembered at least; at most twice as many are.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._new: dict[bytes, Any] = {}
        self._old: dict[bytes, Any] = {}

    def put(self, key: bytes, known: Any) -> None:
        if len(self._new) >= self._most:
            self._old, self._new = self._new, {}
        self._new[key] = known

    def get(self, key: bytes) -> Any:
        """What is known of it; None if it is not remembered."""
        found = self._new.get(key)
        return found if found is not None else self._old.get(key)
